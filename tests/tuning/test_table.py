"""Cheaper tables: groups of heads measured together, and the trace's coverage, against slow oracles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headscope.errors import DataError
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.samples import Samples
from headscope.tuning import Replay, measure_sensitivity
from headscope.tuning.measure import table as tables
from headscope.tuning.measure.coverage import Coverage, Groups
from headscope.tuning.measure.options import Option, default_options
from headscope.tuning.measure.single_head import alone_policy
from headscope.tuning.measure.table import kind_for, sensitivity_table
from tests.models.test_raster import gpt2, model_of


@pytest.fixture(scope="module")
def generated(tiny: JanusModel) -> Samples:
    return generate(tiny, ["red apple", "a blue car on a red background"], 5)


@pytest.fixture(scope="module")
def replay(tiny: JanusModel, generated: Samples) -> Replay:
    return Replay(tiny, generated)


@pytest.fixture(scope="module")
def coverage(tiny: JanusModel) -> Coverage:
    """Of a made-up attention, query by query."""
    return Coverage(curves_of(attention(tiny)), tiny.shape)


def attention(model: JanusModel) -> np.ndarray:
    """[layers, heads, N, N], causal; half of it goes to the prompt."""
    n, shape = model.shape.geometry.tokens, (model.shape.layers, model.shape.query_heads)
    weights = np.random.default_rng(0).gamma(0.3, size=(*shape, n, n)) * np.tril(np.ones((n, n)))
    return 0.5 * weights / weights.sum(-1, keepdims=True)


def curves_of(found: np.ndarray) -> dict[str, torch.Tensor]:
    """The two curves as statistics.md defines them, the slow way."""
    n = found.shape[-1]
    window, column = np.zeros(found.shape[:-1]), np.zeros(found.shape[:-1])
    for w in range(n):
        for q in range(n):
            window[..., w] += found[..., q, max(q - w, 0) : q + 1].sum(-1) / n
    for k in range(n):
        column[..., k] = found[..., k:, k].mean(-1)
    return {"window_coverage": torch.from_numpy(window).float(), "column_profile": torch.from_numpy(column).float()}


def test_a_window_misses_what_lies_beyond_it(tiny: JanusModel, coverage: Coverage) -> None:
    found, n = attention(tiny), tiny.shape.geometry.tokens
    for window in (0, 3, n - 1):
        missed = np.zeros(found.shape[:2])
        for q in range(n):
            missed += found[..., q, : max(q - window, 0)].sum(-1) / n
        groups = missed.reshape(tiny.shape.layers, tiny.shape.kv_heads, -1).mean(-1)
        np.testing.assert_allclose(coverage.missed(Option(window)), groups, atol=1e-5)


def test_heavy_tokens_catch_what_the_most_attended_receive(tiny: JanusModel, coverage: Coverage) -> None:
    found = attention(tiny).reshape(tiny.shape.layers, tiny.shape.kv_heads, -1, *attention(tiny).shape[2:]).mean(2)
    received = found.sum(-2)
    for heavy in (1, 4):
        best = np.sort(received, -1)[..., -heavy:].sum(-1) / received.sum(-1)
        expected = coverage.missed(Option(2)) * (1 - best)
        np.testing.assert_allclose(coverage.missed(Option(2, heavy)), expected, atol=1e-5)


def test_more_never_misses_more(tiny: JanusModel, coverage: Coverage) -> None:
    options = default_options(tiny.shape.geometry)
    for small in options:
        for large in options:
            if small.smaller_than(large):
                assert (coverage.missed(large) <= coverage.missed(small) + 1e-12).all()


def test_a_trace_of_some_layers_is_refused(tiny: JanusModel) -> None:
    curves = {name: curve[:1] for name, curve in curves_of(attention(tiny)).items()}
    with pytest.raises(DataError, match="needs one of all layers and heads"):
        Coverage(curves, tiny.shape)
    with pytest.raises(DataError, match="window_coverage is missing"):
        Coverage({}, tiny.shape)


def test_a_group_loses_what_its_heads_lose_together(replay: Replay, coverage: Coverage, tmp_path: Path) -> None:
    semantic = np.array([[True, False], [True, True]])
    groups = Groups(semantic, coverage)
    assert groups.members == [(0, (1,)), (0, (0,)), (1, (0, 1))]
    options = [Option(1), Option(3), Option(1, 3)]
    file = tmp_path / "groups.parquet"
    measure_sensitivity(replay, options[:1], file, stride=4, groups=groups)
    table = measure_sensitivity(replay, options, file, stride=4, groups=groups)  # goes on
    assert table.attrs["cells"] == 6
    for layer, heads in groups.members:
        for option in options:
            mine = table[(table.layer == layer) & (table.window == option.window) & (table.heavy == option.heavy)]
            losses = mine.set_index("kv_head")["loss"].loc[list(heads)].to_numpy()
            plain = replay.measure(alone_policy(replay, layer, heads, option, 4)).kl
            assert losses.sum() == pytest.approx(plain, rel=1e-3, abs=1e-7)
            missed = coverage.missed(option)[layer, list(heads)]
            np.testing.assert_allclose(losses * missed.sum(), losses.sum() * missed, rtol=1e-6)
    with pytest.raises(DataError, match="measured on other groups"):
        measure_sensitivity(replay, options, file, stride=4, groups=Groups(~semantic, coverage))
    with pytest.raises(DataError, match="measured on other groups"):
        measure_sensitivity(replay, options, file, stride=4)


def test_each_kind_says_what_every_head_would_cost(replay: Replay, coverage: Coverage, tmp_path: Path) -> None:
    shape = replay.model.shape
    groups = Groups(np.array([[True, False], [True, True]]), coverage)
    every = 4 * len(default_options(shape.geometry))
    assert kind_for("auto", replay.model) == "fisher"
    for kind, cells in (("heads", every), ("groups", every * 3 // 4), ("coverage", 0)):
        table = sensitivity_table(replay, kind, groups, tmp_path / "table.parquet")
        assert (table.cells, table.every, len(table.losses)) == (cells, every, every)
        assert f"{cells:,} cells" in table.sentence()
        assert (f"(`table` heads) would be {every:,}" in table.sentence()) == (kind != "heads")
    again = sensitivity_table(replay, "groups", groups, tmp_path / "table.parquet")
    assert again.sentence().endswith(f"would be {every:,}.")  # nothing was measured, so no time is known


@pytest.mark.parametrize(("most", "kind", "says"), [(4, "heads", "every head alone"), (3, "groups", "a class in a layer")])
def test_a_decoder_built_otherwise_has_another_table_and_says_why(
    monkeypatch: pytest.MonkeyPatch, most: int, kind: str, says: str
) -> None:
    model = model_of(gpt2())
    heads = model.shape.layers * model.shape.kv_heads
    monkeypatch.setattr(tables, "find_sites", lambda _: None)  # as for `nn.MultiheadAttention`, see test_sites.py
    monkeypatch.setattr(tables, "MOST_CELLS", most * heads)
    monkeypatch.setattr(tables, "default_options", lambda *_: [Option(1), Option(2), Option(3), Option(1, 3)])
    groups = Groups(np.array([[True, False, True, True], [True] * 4]), Coverage(curves_of(attention(model)), model.shape))
    table = sensitivity_table(Replay(model, generate(model, ["image"], 0)), "auto", groups)
    assert (table.kind, table.every) == (kind, 4 * heads)
    sentence = table.sentence()
    assert says in sentence
    assert f"; {tables.NO_GRADIENTS.format('mine')}" in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
