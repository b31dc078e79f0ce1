"""Bits in the search: options, tables, allocations, spaces and presets offer 16, 8 and 4, counted as the runtime counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

import headscope
from headscope.errors import BudgetError, DataError
from headscope.geometry import Geometry
from headscope.models import ImageModel
from headscope.policy import CONTROLS, CacheSpec, Limit, Policy
from headscope.runtime import generate
from headscope.tuning import (
    Replay,
    Search,
    SearchConfig,
    SearchFiles,
    default_options,
    losses_from,
    measure_sensitivity,
    sensitivity_table,
)
from headscope.tuning.measure import table as tables
from headscope.tuning.measure.fisher import fisher_table
from headscope.tuning.measure.options import Losses, Option, interpolated
from headscope.tuning.measure.single_head import alone_policy
from headscope.tuning.propose.group_space import GroupSpace
from headscope.tuning.propose.knapsack import option_bytes, solve
from headscope.tuning.propose.sizes import merged
from headscope.tuning.propose.spaces import TableSpace, neutral
from tests.tuning.landscape import PREFIX, SCORES, SHAPE


@pytest.fixture(scope="module")
def replay(tiny: ImageModel) -> Replay:
    return Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)


def spec() -> CacheSpec:
    return CacheSpec(SHAPE, PREFIX)


def falling(options: tuple[Option, ...], seed: int = 0) -> Losses:
    """Losses that fall with tokens and with bits."""
    rng = np.random.default_rng(seed)
    need = rng.uniform(0.5, 20, (SHAPE.layers, SHAPE.kv_heads, 1))
    kept = np.array([option.window + option.heavy for option in options])
    coarse = np.array([{16: 0.0, 8: 1e-4, 4: 1e-2}[option.bits] for option in options])
    return Losses(options, need * (np.exp(-0.02 * kept) + coarse) * (kept < SHAPE.geometry.tokens - 1) + need * coarse, 1)


def test_options_are_offered_in_each_number_of_bits_and_below_16_every_token_too() -> None:
    geometry = Geometry(16, 16)
    plain, two, every = (default_options(geometry, bits) for bits in ((16,), (16, 8), (16, 8, 4)))
    assert two[: len(plain)] == plain
    assert len(two) == 2 * len(plain) + 1
    assert {option.bits for option in plain} == {16}
    assert len(set(every)) == len(every) == 42
    assert default_options(geometry, (4, 8, 16), 24) == every[:24]
    assert {option.bits for option in every[:9]} == {16, 8, 4}  # a stopped table is of use
    for small in (Geometry(1, 4), Geometry(2, 2), Geometry(4, 4, 1)):
        most = small.tokens - 1
        some = default_options(small, (16, 8, 4))
        assert all(option.window + option.heavy < most or option == Option(most, bits=option.bits) for option in some)
        assert {Option(most, bits=8), Option(most, bits=4)} <= set(some)
    assert Option(255, bits=8) in every
    assert Option(255, bits=4) in every
    assert Option(2, 4, 0.85, 4).smaller_than(Option(2, 4, 0.85, 8))
    assert not Option(2, 4, 0.85, 16).smaller_than(Option(3, 9, 0.85, 8))


@given(st.sampled_from([4, 8, 16]), st.integers(0, 20), st.integers(0, 14), st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_an_option_costs_what_its_policy_takes(bits: int, window: int, heavy: int, anchor: int) -> None:
    option = Option(window, heavy, bits=bits)
    policy = Policy.uniform(SHAPE, window=window, heavy=heavy, anchor=anchor, bits=bits, stride=2, prefix=PREFIX)
    cost = option_bytes(Losses((option,), np.zeros((SHAPE.layers, SHAPE.kv_heads, 1)), 2), Limit(10**9, spec()), 2, anchor)
    assert cost[0] * SHAPE.layers * SHAPE.kv_heads * spec().rows == spec().bytes_of(policy)


def test_what_heads_write_in_fewer_bits_is_lost_less_the_more_bits_there_are(replay: Replay) -> None:
    options = [Option(3, bits=bits) for bits in (16, 8, 4)] + [Option(15, bits=8), Option(15, bits=4)]
    table = fisher_table(replay, options, 4)
    loss = table.groupby(["window", "bits"])["loss"].sum()
    assert loss[15, 8] < 0.05 * loss[15, 4]
    assert loss[3, 16] == pytest.approx(loss[3, 8], rel=0.05)
    assert loss[3, 4] != loss[3, 16]


def test_a_head_alone_has_the_bits_of_its_option(replay: Replay) -> None:
    policy = alone_policy(replay, 1, 0, Option(15, bits=4), 4)
    assert policy.bits.tolist() == [[16, 16], [4, 16]]
    exact = measure_sensitivity(replay, [Option(15, bits=4)], stride=4, negligible=0.0)
    assert exact["bits"].tolist() == [4] * 4
    assert exact["loss"].iloc[2] == pytest.approx(replay.measure(policy).kl, rel=0.02, abs=2e-6)


def test_a_table_of_before_there_were_bits_is_read_as_one_of_16(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    measure_sensitivity(replay, [Option(2)], path, stride=4)
    old = pq.read_table(path).drop_columns(["bits"])
    pq.write_table(old, path)
    again = measure_sensitivity(replay, [Option(2)], path, stride=4)
    assert again.attrs["cells"] == 0
    assert set(again["bits"]) == {16}


def test_a_table_grows_by_the_bits_that_are_asked_for_and_gives_only_those(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "DISAGREES", 1e9)
    first = sensitivity_table(replay, "fisher", None, tmp_path / "t.parquet")
    made: list[int] = []
    plain = fisher_table

    def counted(replay: Replay, options: list[Option], *given: object, **named: object) -> pd.DataFrame:
        made.extend(option.bits for option in options)
        return plain(replay, options, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "fisher_table", counted)
    more = sensitivity_table(replay, "fisher", None, tmp_path / "t.parquet", bits=(16, 8))
    assert set(made) == {8}
    assert set(more.losses["bits"]) == {16, 8}
    again = sensitivity_table(replay, "fisher", None, tmp_path / "t.parquet")
    assert set(made) == {8}
    columns = ["layer", "kv_head", "window", "heavy", "decay", "loss"]
    pd.testing.assert_frame_equal(again.losses[columns], first.losses[columns], check_dtype=False)
    shape = replay.model.shape
    assert {option.bits for option in losses_from(more.losses, shape.layers, shape.kv_heads, shape.geometry).options} == {16, 8}


def test_a_limit_that_only_fewer_bits_reach_says_which(tiny: ImageModel, tmp_path: Path) -> None:
    samples, counted = generate(tiny, ["red apple"], 0), CacheSpec.of(tiny, tiny.tokenize(["red apple"]).ids.shape[1])
    scores, least = torch.zeros(2, 2), counted.smallest_of((16,))
    limit = Limit.of_memory(least - 1, counted)
    with pytest.raises(BudgetError, match=rf"^bits 16: .* takes {least:,} bytes, .*; one of 8 bits fits, add 8 to bits\.$"):
        Search(tiny, samples, scores, limit, SearchConfig(bits="16"), SearchFiles(tmp_path))
    below = Limit(counted.smallest_of((4,)) - 1, counted)
    with pytest.raises(BudgetError, match=r"^bits 16,8,4: .*; expected a larger limit\.$"):
        Search(tiny, samples, scores, below, SearchConfig(), SearchFiles(tmp_path))


@given(st.integers(0, 1000), st.floats(0.25, 0.9))
@settings(max_examples=20, deadline=None)
def test_with_bits_an_allocation_keeps_to_the_limit_and_promises_no_more_loss(seed: int, keep: float) -> None:
    options = tuple(sorted({*default_options(SHAPE.geometry, (16, 8, 4)), Option(SHAPE.geometry.tokens - 1)}, key=_last_full))
    losses, limit = falling(options, seed), Limit.of_share(keep, spec())
    of_16 = [number for number, option in enumerate(options) if option.bits == 16]
    only = Losses(tuple(options[number] for number in of_16), losses.loss[:, :, of_16], 1)
    with_bits, without = solve(losses, limit, 1), solve(only, limit, 1)
    assert limit.spec.bytes_of(with_bits) <= limit.bytes
    assert not without.quantized
    assert all(len(with_bits.buckets(layer)) <= 3 for layer in range(SHAPE.layers))
    assert with_bits.provenance["predicted_loss"] <= without.provenance["predicted_loss"] * 1.005 + 1e-12


def _last_full(option: Option) -> tuple[bool, Option]:
    return (option.bits == 16 and option.window >= SHAPE.geometry.tokens - 1, option)


def test_sizes_between_two_are_estimated_within_their_bits() -> None:
    options = (Option(2, 3, bits=4), Option(2, 3, bits=16), Option(2, 11, bits=4), Option(2, 11, bits=16), Option(15))
    more = interpolated(Losses(options, np.array([[[4.0, 2.0, 2.0, 0.5, 0.0]]]), 1))
    found = dict(zip(more.options, more.loss[0, 0], strict=True))
    assert found[Option(2, 7, bits=4)] == pytest.approx(8**0.5)
    assert found[Option(2, 7, bits=16)] == pytest.approx(1.0)
    assert len(found) == len(options) + 2


def test_no_size_is_estimated_between_the_largest_window_and_every_token() -> None:
    geometry = Geometry(8, 8)
    options = (*sorted(default_options(geometry, (16, 8, 4))), Option(63))
    loss = np.linspace(2.0, 0.0, len(options))[None, None]
    largest = max(option.window for option in options if option.window < 63)
    assert {option.bits for option in options if option.window == 63} == {16, 8, 4}
    more = interpolated(Losses(options, loss, 2), between=3)
    assert len(more.options) > len(options)
    assert [option for option in more.options if largest < option.window < 63] == []
    assert set(options) <= set(more.options)


def test_spaces_around_a_policy_keep_its_bits() -> None:
    options = tuple(sorted({*default_options(SHAPE.geometry, (16, 8, 4)), Option(SHAPE.geometry.tokens - 1)}, key=_last_full))
    limit = Limit.of_share(0.2, spec())
    space = TableSpace(
        limit, SCORES, [1, 2], falling(options), towards=Policy.uniform(SHAPE, window=9, stride=1, prefix=PREFIX)
    )
    solved = space.build(neutral(space))
    assert solved.quantized
    blended = space.build({**neutral(space), "blend": 0.2})
    assert limit.spec.bytes_of(blended) <= limit.bytes
    assert blended.quantized
    around = GroupSpace(limit, SCORES, solved)
    assert torch.equal(around.build(neutral(around)).bits, solved.bits)


def test_two_kinds_that_become_one_have_the_more_bits() -> None:
    window, heavy = torch.tensor([[8, 8, 200]]), torch.zeros(1, 3, dtype=torch.int64)
    bits = torch.tensor([[4, 8, 16]], dtype=torch.uint8)
    assert merged(window, heavy, 2, bits=bits)[3].tolist() == [[8, 8, 16]]
    assert merged(window, heavy, 3, bits=bits)[3].tolist() == bits.tolist()


def test_a_search_with_bits_ends_in_a_policy_that_has_them_and_a_study_of_its_own(replay: Replay, tmp_path: Path) -> None:
    model, samples = replay.model, replay.samples
    limit = Limit.of_share(0.5, CacheSpec(model.shape, replay.prefix))
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    knobs = SearchConfig(trials=3, table="heads", images=2, table_images=2, bits="16")
    plain = headscope.search(model, samples, scores, limit, tmp_path, knobs)
    published = presets_in(tmp_path)
    found = headscope.search(model, samples, scores, limit, tmp_path, knobs.replace(bits="4,16,8"))
    assert presets_in(tmp_path) > published
    assert {f"{name}+bits" for name in published if name not in ("kivi", *CONTROLS)} <= presets_in(tmp_path)
    assert not plain.policy.quantized
    assert found.policy.quantized
    assert found.kl < plain.kl
    assert limit.spec.bytes_of(found.policy) <= limit.bytes
    again = headscope.search(model, samples, scores, limit, tmp_path, knobs)
    assert again.policy.same_as(plain.policy)
    assert presets_in(tmp_path) == published  # those of the search with bits are gone


def presets_in(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "presets").glob("*.safetensors")}


@pytest.mark.parametrize("bits", ["3", "16,2", "", "eight"])
def test_bits_that_can_not_be_are_refused(bits: str) -> None:
    with pytest.raises(DataError, match=r"bits: .*expected one of 16, 8 and 4"):
        SearchConfig(bits=bits)
    assert SearchConfig(bits=8).each_bits == (8,)  # type: ignore[arg-type]
    assert SearchConfig(bits=[4, 16]).bits == "16,4"  # type: ignore[arg-type]


def test_a_table_with_bits_that_no_head_can_have_is_refused(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    measure_sensitivity(replay, [Option(2, bits=8)], path, stride=4)
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("bits"), "bits", pa.array([7, 8, 8, 8])), path)
    with pytest.raises(DataError, match=r"layer 0, kv_head 0, .*bits 7, .*which is no measured loss"):
        measure_sensitivity(replay, [Option(2, bits=8)], path, stride=4)
