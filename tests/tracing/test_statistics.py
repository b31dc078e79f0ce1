"""Every statistic equals its definition: from hand-made patterns, and from eager maps summed the slow way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from headscope.geometry import Geometry
from headscope.models.groups import Group
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing import Selection
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.accumulators import Accumulator
from headscope.tracing.catalogue import CURVES, STATISTICS
from headscope.tracing.curves import lag_mass
from headscope.tracing.hooks import watch, watching
from headscope.tracing.table import table
from tests.tracing.definitions import by_definition, curve_by_definition

ROWS, COLS = 3, 4
GEOMETRY = Geometry(ROWS, COLS)
QUERIES = ROWS * COLS - 1
PREFIX = 2


def group_of(attention: np.ndarray) -> Group:
    """A group whose softmax is `attention` [Q, P + Q] (rows sum to 1, causal): q = log A, k = identity."""
    length = attention.shape[1]
    q = np.full((length, length), -60.0)
    q[PREFIX:] = np.log(np.maximum(attention, 1e-26))
    positions = torch.arange(length)
    return Group([0], _t(q), _t(np.eye(length)), positions[None, None], positions, None, 1.0)


def _t(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float()[None, None]


def accumulated(group: Group, **selection) -> Accumulated:
    (band,) = Accumulator(GEOMETRY, PREFIX, Selection(full=True, **selection)).add(group)
    return band


def statistics_of(attention: np.ndarray) -> dict[str, float]:
    a = accumulated(group_of(attention))
    return {name: float(statistic(a)[0, 0]) for name, statistic in STATISTICS.items()}


def attending(to) -> np.ndarray:
    """All of query t's attention goes to the sequence position `to(t)`."""
    attention = np.zeros((QUERIES, PREFIX + QUERIES))
    for t in range(QUERIES):
        attention[t, to(t)] = 1.0
    return attention


def test_a_head_that_reads_the_first_token() -> None:
    found = statistics_of(attending(lambda t: 0))
    assert found["prefix_mass"] == pytest.approx(1, abs=1e-6)
    assert found["first_token_mass"] == pytest.approx(1, abs=1e-6)
    assert found["sparsity_1"] == pytest.approx(1, abs=1e-6)
    assert found["neighbourhood_2"] == pytest.approx(0, abs=1e-6)
    assert found["sink_rate"] == pytest.approx(1 / 13)  # one of 2 + 11 keys
    assert found["entropy"] == pytest.approx(0, abs=1e-5)
    assert found["verticality"] == pytest.approx(0, abs=1e-5)
    assert found["diagonality"] == pytest.approx(-np.mean(np.arange(2, 13)) / 13, abs=1e-5)


def test_a_head_that_reads_above_the_token_about_to_be_drawn() -> None:
    drawn = [t + 1 for t in range(QUERIES)]
    found = statistics_of(attending(lambda t: PREFIX + drawn[t] - COLS if drawn[t] >= COLS else 0))
    assert found["row_above_right"] == pytest.approx(8 / 11)  # what is drawn into the first row has nothing above it
    assert found["row_above"] == pytest.approx(0, abs=1e-6)
    assert found["row_above_left"] == pytest.approx(0, abs=1e-6)


def test_a_head_that_reads_the_row_above() -> None:
    found = statistics_of(attending(lambda t: PREFIX + t - COLS if t >= COLS else 0))
    assert found["row_above"] == pytest.approx(7 / 11)  # the first row has none
    assert found["previous_token"] == pytest.approx(0, abs=1e-6)
    assert found["neighbourhood_1"] == pytest.approx(7 / 11)
    assert found["sparsity_1"] == pytest.approx(4 / 11)
    assert found["prefix_mass"] == pytest.approx(4 / 11)
    assert found["column_variance"] > 0


def test_a_head_that_reads_the_last_column_of_the_first_row() -> None:
    corner = COLS - 1
    found = statistics_of(attending(lambda t: PREFIX + corner if t > corner else 1))
    assert found["margin_mass"] == pytest.approx(7 / 11)
    assert found["column_concentration"] == pytest.approx(1, abs=1e-6)
    assert found["sparsity_image_1"] >= 5 / 11 - 1e-6


def test_even_attention_has_entropy_one() -> None:
    attention = np.zeros((QUERIES, PREFIX + QUERIES))
    for t in range(QUERIES):
        attention[t, : PREFIX + t + 1] = 1 / (PREFIX + t + 1)
    found = statistics_of(attention)
    assert found["entropy"] == pytest.approx(1, abs=1e-5)
    assert found["self_mass"] == pytest.approx(np.mean([1 / (PREFIX + t + 1) for t in range(QUERIES)]), abs=1e-6)
    assert found["sink_rate"] == 0


def random_attention(rng: np.random.Generator, sharpness: float) -> np.ndarray:
    logits = sharpness * rng.standard_normal((QUERIES, PREFIX + QUERIES))
    causal = np.arange(PREFIX + QUERIES)[None] <= PREFIX + np.arange(QUERIES)[:, None]
    attention = np.where(causal, np.exp(logits), 0)
    return attention / attention.sum(1, keepdims=True)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_each_statistic_equals_its_definition(name: str) -> None:
    attention = random_attention(np.random.default_rng(3), 2.0)
    assert statistics_of(attention)[name] == pytest.approx(by_definition(attention, name, COLS), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", list(CURVES))
def test_each_curve_equals_its_definition(name: str) -> None:
    attention = random_attention(np.random.default_rng(5), 2.0)
    found = CURVES[name](accumulated(group_of(attention)))[0, 0]
    expected = curve_by_definition(attention, name, ROWS, COLS)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@torch.inference_mode()
def test_each_statistic_of_a_model_equals_its_definition_on_the_models_own_eager_maps(tiny: JanusModel) -> None:
    """Nothing of the tracer is in the oracle: eager maps, padding cut off by hand, one query and one key at a time."""
    samples = generate(tiny, ["dog", "a blue car on a red background"], 5)
    prefix = tiny.tokenize(samples.prompts)
    ids = torch.cat([prefix.ids, prefix.unconditional_ids])
    mask = torch.cat([prefix.mask, prefix.unconditional_mask])
    tokens = samples.tokens[:, :-1].long().repeat(2, 1)
    embeds = torch.cat([tiny.embed_prefix(ids), tiny.embed_tokens(tokens)], 1)
    full = torch.cat([mask, mask.new_ones(tokens.shape)], 1)
    tiny.decoder.config._attn_implementation = "eager"
    maps = tiny.decoder(inputs_embeds=embeds, attention_mask=full, output_attentions=True).attentions
    tiny.decoder.config._attn_implementation = "sdpa"
    watched = watch(tiny, samples, Selection(full=True))
    assert not mask.all()  # one prompt is padded
    for layer, attention in enumerate(maps):
        found = {name: statistic(watched.layers[layer].whole) for name, statistic in STATISTICS.items()}
        for row in range(4):
            for head in range(4):
                real = attention[row, head, ids.shape[1] :][:, full[row].bool()].double().numpy()
                for name in STATISTICS:
                    expected = by_definition(real, name, 4)
                    value = float(found[name][row, head])
                    assert value == pytest.approx(expected, abs=1e-5, nan_ok=True), (name, layer, row, head)


@torch.inference_mode()
@pytest.mark.parametrize("once", [False, True])
def test_tracing_changes_no_bit_of_the_logits_unless_nobody_uses_them(
    tiny: JanusModel, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    samples = generate(tiny, ["dog", "a blue car on a red background"], 5)
    original, hidden = tiny.forward, []

    def forward(embeds: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden.append((embeds, mask, original(embeds, mask)))
        return hidden[0][2]

    monkeypatch.setattr(tiny, "forward", forward)
    with pytest.MonkeyPatch.context() as patch:
        if not once:
            patch.setattr("headscope.tracing.hooks.watching", lambda *a, once, **k: watching(*a, **k))
        watch(tiny, samples)
    embeds, mask, watched = hidden[0]
    expected, found = tiny.logits(original(embeds, mask)), tiny.logits(watched)
    assert torch.equal(found, expected) == (not once)
    real = mask.bool()  # what stands at padding is nobody's
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), sharpness=st.sampled_from([0.0, 0.1, 1.0, 5.0, 50.0]))
def test_every_statistic_stays_in_its_range(seed: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    length = PREFIX + QUERIES
    q, k = (torch.from_numpy(rng.standard_normal((1, 1, length, 8))).float() for _ in range(2))
    positions = torch.arange(length)
    a = accumulated(Group([0], q, k, positions[None, None], positions, None, sharpness))
    words = {
        "diagonal of the image": math.hypot(ROWS - 1, COLS - 1),
        "sides of the image": max(ROWS, COLS) - 1,
        "tokens of the image": ROWS * COLS,
        "-log(keys)": -math.log(length),
        "inf": math.inf,
        "-inf": -math.inf,
    }
    for name, statistic in STATISTICS.items():
        low, high = (words.get(end, end) for end in (statistic.low, statistic.high))
        value = float(statistic(a)[0, 0])
        assert math.isnan(value) or low - 1e-5 <= value <= high + 1e-5, name


def test_blocks_of_queries_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    attention = rng.random((QUERIES, PREFIX + QUERIES))
    whole = accumulated(group_of(attention))
    monkeypatch.setattr("headscope.tracing.accumulators.BLOCK", 40)
    monkeypatch.setattr("headscope.tracing.accumulators.TOGETHER", 1)
    blocks = accumulated(group_of(attention))
    for name in ("columns", "squares", "offsets", "offsets_image", "entropy", "best", "best_running"):
        torch.testing.assert_close(getattr(whole, name), getattr(blocks, name))


def test_padding_does_not_change_a_statistic(tiny: JanusModel) -> None:
    """A short prompt beside a long one, and alone; grouped-query heads and both streams included."""
    samples = generate(tiny, ["dog", "a blue car on a red background"], 3)
    full = Selection(full=True)
    together, alone = watch(tiny, samples, full), watch(tiny, samples.select([0]), full)
    for layer in range(2):
        for name, statistic in STATISTICS.items():
            padded = statistic(together.layers[layer].whole)[[0, 2]]
            plain = statistic(alone.layers[layer].whole)
            torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_lags_are_the_sub_diagonals() -> None:
    a = accumulated(group_of(attending(lambda t: PREFIX + max(t - 3, 0))))
    lags = lag_mass(a)[0, 0]
    assert lags[3] == pytest.approx(8 / 11, abs=1e-6)
    assert lags[:3].tolist() == pytest.approx([1 / 11] * 3, abs=1e-6)
    assert lags.shape == (ROWS * COLS,)


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    written = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert written == table(), "run python -m headscope.tracing.table > docs/statistics.md"
    assert all(f"`{name}`" in written for name in (*STATISTICS, *CURVES))
