"""Prompts in the search: options that drop them are measured, counted as the runtime counts, and chosen where they pay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

import headscope
from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import ImageModel
from headscope.policy import CacheSpec, Limit, Policy
from headscope.runtime import generate
from headscope.tuning import Replay, SearchConfig, default_options, measure_sensitivity, sensitivity_table
from headscope.tuning.measure import table as tables
from headscope.tuning.measure.fisher import fisher_table
from headscope.tuning.measure.options import Losses, Option, interpolated
from headscope.tuning.measure.single_head import alone_policy
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.group_space import GroupSpace
from headscope.tuning.propose.knapsack import option_bytes, solve
from headscope.tuning.propose.sizes import merged
from headscope.tuning.propose.spaces import TableSpace, neutral
from tests.tuning.landscape import SCORES, SHAPE

PREFIX = 12
SPEC = CacheSpec(SHAPE, PREFIX)
MOST = SHAPE.geometry.tokens - 1


@pytest.fixture(scope="module")
def replay(tiny: ImageModel) -> Replay:
    return Replay(tiny, generate(tiny, ["red apple on a blue background", "dog"], 0), by_stream=False)


def test_options_without_prompts_come_on_top_of_the_others() -> None:
    for geometry in (Geometry(4, 4), Geometry(16, 16)):
        for bits in ((16,), (16, 8), (16, 8, 4)):
            whole, both = (default_options(geometry, bits, prompts=prompts) for prompts in ((1,), (1, 0)))
            assert [option for option in both if option.prompt] == whole
            assert {option.bits for option in both if not option.prompt} <= set(bits)
            assert {0, 1} == {option.prompt for option in both}
            assert len(set(both)) == len(both)
    assert Option(2, 4, 0.85, 8, 0).smaller_than(Option(2, 4, 0.85, 8))
    assert not Option(2, 4, 0.85, 8).smaller_than(Option(3, 4, 0.85, 8, 0))


@given(st.sampled_from([0, 1]), st.sampled_from([4, 8, 16]), st.integers(0, 20), st.integers(0, 14), st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_an_option_costs_what_its_policy_takes(prompt: int, bits: int, window: int, heavy: int, anchor: int) -> None:
    numbers = {"window": window, "heavy": heavy, "bits": bits, "prompt": prompt}
    policy = Policy.uniform(SHAPE, anchor=anchor, stride=2, prefix=PREFIX, **numbers)  # type: ignore[arg-type]
    losses = Losses((Option(**numbers),), np.zeros((SHAPE.layers, SHAPE.kv_heads, 1)), 2)  # type: ignore[arg-type]
    cost = option_bytes(losses, Limit(10**9, SPEC), 2, anchor)
    assert cost[0] * SHAPE.layers * SHAPE.kv_heads * SPEC.rows == SPEC.bytes_of(policy)


def test_a_head_alone_drops_its_prompt_and_by_gradients_it_loses_about_as_much(replay: Replay) -> None:
    option = Option(15, prompt=0)
    assert alone_policy(replay, 1, 0, option, 4).prompt.tolist() == [[1, 1], [0, 1]]
    exact = measure_sensitivity(replay, [option], stride=4, negligible=0.0)
    assert exact["prompt"].tolist() == [0] * 4
    found = replay.measure(alone_policy(replay, 1, 0, option, 4)).kl
    assert exact["loss"].iloc[2] == pytest.approx(found, rel=0.02, abs=2e-6)
    quick = fisher_table(replay, [option, Option(15)], 4, samples=16)
    by_prompt = quick.groupby("prompt")["loss"].sum()
    assert by_prompt[1] == pytest.approx(0.0, abs=1e-9)
    assert by_prompt[0] == pytest.approx(float(exact["loss"].sum()), rel=0.7)


def test_tables_of_before_there_were_prompts_are_of_whole_ones_and_grow_by_the_others(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    measure_sensitivity(replay, [Option(2)], path, stride=4)
    pq.write_table(pq.read_table(path).drop_columns(["prompt"]), path)
    again = measure_sensitivity(replay, [Option(2), Option(2, prompt=0)], path, stride=4, negligible=0.0)
    assert again.attrs["cells"] == 4
    assert again["prompt"].tolist() == [1] * 4 + [0] * 4
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("prompt"), "prompt", pa.array([2] + [1] * 7)), path)
    with pytest.raises(DataError, match=r"layer 0, kv_head 0, .*prompt 2, .*which is no measured loss"):
        measure_sensitivity(replay, [Option(2)], path, stride=4)
    monkeypatch.setattr(tables, "DISAGREES", 1e9)
    made = [sensitivity_table(replay, "fisher", prompts=prompts).losses["prompt"].unique() for prompts in ((1,), (1, 0))]
    assert [sorted(found) for found in made] == [[1], [0, 1]]
    short = Replay(replay.model, replay.samples, by_stream=False)
    short.prefix = 2  # nothing to drop
    assert len(default_options(replay.geometry)) == len(tables.offered(short, "fisher", (16,), None, (1, 0)))


def losses(worth: float) -> Losses:
    """Losses that fall with tokens; dropping the prompt costs `worth` more in the upper half of the layers, nothing below."""
    options = (*(Option(size, prompt=prompt) for size in (1, 4, 9, 16) for prompt in (0, 1)), Option(MOST))
    kept = np.array([option.window for option in options])
    loss = np.broadcast_to(np.exp(-0.1 * kept) * (kept < MOST), (SHAPE.layers, SHAPE.kv_heads, len(options))).copy()
    loss[SHAPE.layers // 2 :] += worth * np.array([not option.prompt for option in options])
    return Losses(options, loss, 1)


def test_prompts_are_dropped_where_that_costs_less_than_it_frees() -> None:
    limit = Limit.of_share(0.4, SPEC)
    policy = solve(losses(10.0), limit, 1)
    half = SHAPE.layers // 2
    assert policy.prompt[:half].max() == 0
    assert policy.prompt[half:].min() == 1
    assert limit.spec.bytes_of(policy) <= limit.bytes
    scores = SCORES
    space = TableSpace(limit, scores, [1], losses(0.2), towards=Policy.uniform(SHAPE, window=3, stride=1, prefix=PREFIX))
    assert "prompt" in [number.name for number in space.numbers]
    shares = [space.build({**neutral(space), "prompt": weight}).prompt.float().mean() for weight in (-1.0, 1.0)]
    assert shares[0] <= shares[1]
    blended = space.build({**neutral(space), "blend": 0.2})
    assert not blended.prompt.all()
    assert limit.spec.bytes_of(blended) <= limit.bytes
    around = GroupSpace(limit, scores, policy)
    assert torch.equal(around.build(neutral(around)).prompt, policy.prompt)
    assert ClassSpace(limit, scores, [1]).locate(policy) is None


def test_sizes_are_estimated_between_options_of_one_prompt() -> None:
    options = (Option(2, 3, prompt=0), Option(2, 3), Option(2, 11, prompt=0), Option(2, 11), Option(MOST))
    more = interpolated(Losses(options, np.array([[[4.0, 2.0, 1.0, 0.5, 0.0]]]), 1))
    found = dict(zip(more.options, more.loss[0, 0], strict=True))
    assert found[Option(2, 7, prompt=0)] == pytest.approx(2.0)
    assert found[Option(2, 7)] == pytest.approx(1.0)
    assert len(found) == len(options) + 2


def test_two_kinds_that_become_one_keep_the_whole_prompt() -> None:
    window, prompt = torch.tensor([[8, 8, 12]]), torch.tensor([[1, 0, 0]], dtype=torch.uint8)
    heavy = torch.zeros_like(window)
    assert merged(window, heavy, 2, prompt=prompt, dropped=3)[4].tolist() == [[1, 1, 0]]
    kept = merged(window, heavy, 2, prompt=prompt, dropped=10)
    assert (kept[0].tolist(), kept[4].tolist()) == ([[8, 12, 12]], [[1, 0, 0]])


def test_a_search_that_may_drop_prompts_is_another_than_one_that_may_not(replay: Replay, tmp_path: Path) -> None:
    model, samples = replay.model, replay.samples
    limit = Limit.of_share(0.45, CacheSpec(model.shape, replay.prefix))
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    knobs = SearchConfig(trials=2, table="fisher", images=2, table_images=2, bits="16", prompt="whole")
    whole = headscope.search(model, samples, scores, limit, tmp_path, knobs)
    found = headscope.search(model, samples, scores, limit, tmp_path, knobs.replace(prompt="by head"))
    assert whole.policy.prompt.all()
    assert limit.spec.bytes_of(found.policy) <= limit.bytes
    assert found.kl <= whole.kl * 1.001
    assert (found.settings["prompt"], whole.settings["prompt"]) == ("by head", "whole")
    with pytest.raises(DataError, match="prompt: half: unknown; expected one of by head, whole"):
        SearchConfig(prompt="half")
