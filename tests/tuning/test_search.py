"""The search proposes only what fits, never ends above what it measured first, and goes on as if it had not stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import BudgetError, DataError
from headscope.policy import PRESETS, CacheSpec, Limit, Policy
from headscope.storage import write_json
from headscope.tuning import SearchConfig, fitting_strides, sweep_presets
from headscope.tuning.measure.measurement import ReplayResult, Watch
from headscope.tuning.measure.options import Losses
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.group_space import GroupSpace
from headscope.tuning.propose.presets import in_bits
from headscope.tuning.propose.sizes import merged
from headscope.tuning.propose.spaces import TableSpace, neutral
from headscope.tuning.study.phases import PhasedStudy
from headscope.tuning.study.storage import StudyStore
from tests.tuning.landscape import LIMIT, PREFIX, SCORES, SHAPE, Landscape, run, table


def test_the_result_is_the_best_of_everything_measured() -> None:
    result, land = run(16)
    losses = [Landscape().measure(policy).kl for policy in land.measured]
    assert result.kl == pytest.approx(min(losses))
    assert result.kl <= min(result.incumbents.values()) + 1e-12
    assert {f"preset {name}" for name in ("streaming", "h2o", "linear_ar", "pyramid", "ssd")} <= set(result.incumbents)
    assert all(CacheSpec(policy.shape, policy.prefix).bytes_of(policy) <= LIMIT.bytes for policy in land.measured)
    assert (result.trials["state"] == "complete").all()
    assert result.policy.limit == LIMIT


def test_equal_policies_are_measured_once() -> None:
    _, land = run(12)
    prints = [policy.fingerprint() for policy in land.measured]
    assert len(prints) == len(set(prints))


def test_a_continued_study_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    few, _ = run(5, tmp_path / "parts.db")
    rest, _ = run(14, tmp_path / "parts.db")
    assert rest.kl <= few.kl
    again, untouched = run(14, tmp_path / "parts.db")
    assert untouched.measured == []
    assert again.policy.same_as(rest.policy)


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    run(2, tmp_path / "study.db")
    with pytest.raises(DataError, match="was made for another bytes"):
        run(2, tmp_path / "study.db", limit=replace(LIMIT, bytes=LIMIT.bytes - 4096))
    with pytest.raises(DataError, match="was made for another seed"):
        run(2, tmp_path / "study.db", seed=4)
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match=r"broken\.db: .*not a database"):
        run(2, tmp_path / "broken.db")


def test_an_interrupted_proposal_is_made_again(tmp_path: Path) -> None:
    whole, _ = run(10, tmp_path / "whole.db")
    land = Landscape()
    measure = land.measure

    def stop_at_the_twentieth(policy: Policy, watch: Watch | None = None) -> ReplayResult:
        if len(land.measured) == 15:
            raise KeyboardInterrupt
        return measure(policy, watch)

    land.measure = stop_at_the_twentieth  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(10, tmp_path / "s.db", land)
    rest, _ = run(10, tmp_path / "s.db")
    assert rest.policy.same_as(whole.policy)


numbers = st.floats(0, 1, allow_nan=False)


def table_in(bits: tuple[int, ...]) -> Losses:
    """As `table()`, each of its options in each of `bits` for a little loss."""
    plain = table()
    offered = [(each, number) for each in bits for number in range(len(plain.options)) if (each, number) != (16, 5)]
    options = tuple(replace(plain.options[number], bits=each) for each, number in offered)
    loss = np.stack([plain.loss[:, :, number] + 0.1 * (1 / each - 1 / 16) for each, number in offered], -1)
    return Losses((*options, plain.options[-1]), np.concatenate([loss, plain.loss[:, :, -1:]], -1), plain.stride)


@given(
    st.lists(numbers, min_size=16, max_size=16),
    st.floats(0.3, 1.0),
    st.sampled_from(["classes", "table", "groups"]),
    st.sampled_from([(16,), (16, 8, 4), (8, 4)]),
)
@settings(max_examples=90, deadline=None)
def test_every_point_of_a_space_fits_the_limit(shares: list[float], keep: float, kind: str, bits: tuple[int, ...]) -> None:
    limit = Limit.of_share(keep, CacheSpec(SHAPE, PREFIX))
    strides = fitting_strides(limit)
    space: ClassSpace | TableSpace | GroupSpace
    classes = ClassSpace(limit, SCORES, strides, bits)
    around = classes.build({**neutral(classes), "bits_semantic": len(bits) - 1})
    if kind == "classes":
        space = classes
    elif kind == "table":
        space = TableSpace(limit, SCORES, strides, table_in(bits), around)
        assert ("bits" in neutral(space)) == (len(bits) > 1)
    else:
        space = GroupSpace(limit, SCORES, around)
    values = {}
    for number, share in zip(space.numbers, shares, strict=False):
        value = number.low + share * (number.high - number.low)
        values[number.name] = round(value) if number.whole else value
    try:
        policy = space.build(values)
    except BudgetError:
        assert kind == "table"  # a stride may leave the measured options no room
        return
    assert CacheSpec(policy.shape, policy.prefix).bytes_of(policy) <= limit.bytes
    assert set(policy.bits.flatten().tolist()) <= {*bits, 16}
    if kind != "classes":
        assert all(len(policy.buckets(layer)) <= space.buckets for layer in range(SHAPE.layers))


@pytest.mark.parametrize("name", ["streaming", "h2o", "linear_ar", "pyramid", "ssd"])
def test_presets_are_points_of_the_class_space(name: str) -> None:
    strides = fitting_strides(LIMIT)
    space = ClassSpace(LIMIT, SCORES, strides)
    found = 0
    for variant in PRESETS[name].sweep(SHAPE.geometry):
        policy = variant.build(LIMIT, SCORES)
        values = space.locate(policy)
        if values is not None:
            found += 1
            assert (space.build(values).window - policy.window).abs().max() <= 1
    assert found >= 5


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["streaming", "h2o", "linear_ar", "pyramid", "ssd"])
def test_presets_with_fewer_bits_are_points_of_it_too(name: str, bits: int) -> None:
    space, of_16 = (ClassSpace(LIMIT, SCORES, fitting_strides(LIMIT), each) for each in ((16, 8, 4), (16,)))
    found = 0
    for variant in PRESETS[name].sweep(SHAPE.geometry):
        policy = in_bits(variant.build(LIMIT, SCORES), LIMIT, bits)
        assert of_16.locate(policy) is None
        if (values := space.locate(policy)) is not None:
            found += 1
            there = space.build(values)
            assert torch.equal(there.bits, policy.bits)
            assert (there.window - policy.window).abs().max() <= 1
    assert found >= 3
    mixed = policy.bits.clone()
    mixed[0] = 16
    assert space.locate(policy.replace(bits=mixed)) is None


def test_what_lies_outside_of_its_numbers_is_no_point_of_it() -> None:
    space = ClassSpace(LIMIT, SCORES, fitting_strides(LIMIT))
    within, beyond = (Policy.uniform(SHAPE, window=7, anchor=anchor, stride=6, prefix=PREFIX) for anchor in (6, 7))
    large = ClassSpace(LIMIT.at(LIMIT.spec.share_of(within)), SCORES, space.strides)
    assert large.locate(within) is not None
    larger = ClassSpace(LIMIT.at(LIMIT.spec.share_of(beyond)), SCORES, space.strides)
    assert larger.locate(beyond) is None


def test_a_class_has_bits_of_its_own() -> None:
    space = ClassSpace(LIMIT, SCORES, fitting_strides(LIMIT), (16, 8, 4))
    policy = space.build({**neutral(space), "bits_semantic": 2, "bits_spatial": 1})
    semantic = neutral(space)["threshold"] < SCORES
    assert torch.equal(policy.bits, torch.where(semantic, 4, 8).to(torch.uint8))
    assert LIMIT.spec.bytes_of(policy) <= LIMIT.bytes


def test_a_stride_that_does_not_fit_is_dropped() -> None:
    tight = Limit.of_share(0.3, CacheSpec(SHAPE, PREFIX))
    assert 12 not in fitting_strides(tight)
    assert fitting_strides(Limit.of_share(0.6, CacheSpec(SHAPE, PREFIX))) == [1, 3, 6, 12]


def test_the_closest_sizes_become_one() -> None:
    window, heavy, decay, *_ = merged(torch.tensor([[1, 2, 20, 1]]), torch.zeros(1, 4, dtype=torch.int64), 2)
    assert window.tolist() == [[2, 2, 20, 2]]
    assert heavy.sum() == 0
    assert decay.tolist() == [[1.0] * 4]


def test_scores_that_fade_otherwise_are_another_kind() -> None:
    window, heavy = torch.tensor([[6, 6, 6, 6]]), torch.tensor([[10, 10, 12, 0]])
    window, heavy, decay, *_ = merged(window, heavy, 3, torch.tensor([[1.0, 0.5, 1.0, 0.5]]))
    assert heavy.tolist() == [[12, 10, 12, 0]]  # two tokens are less than half of ten
    assert decay.tolist() == [[1.0, 0.5, 1.0, 1.0]]  # without heavy tokens it is never read
    assert merged(window, heavy, 2, decay)[2].tolist() == [[1.0, 1.0, 1.0, 1.0]]  # the more tokens say how to fade


def fading_table() -> Losses:
    """As `table()`, where every second head loses less with scores that fade, the others more."""
    plain = table()
    heavy = [number for number, option in enumerate(plain.options) if option.heavy]
    fading = plain.loss[:, :, heavy] * np.array([0.8, 1.2, 0.8, 1.2])[None, :, None]
    options = [replace(plain.options[number], decay=0.5) for number in heavy]
    return Losses((*options, *plain.options), np.concatenate([fading, plain.loss], -1), plain.stride)


def test_spaces_keep_how_each_head_fades() -> None:
    strides = fitting_strides(LIMIT)
    towards = ClassSpace(LIMIT, SCORES, strides)
    near = TableSpace(LIMIT, SCORES, strides, fading_table(), towards.build(neutral(towards)), buckets=4)
    policy = near.build(neutral(near))
    heavy = policy.heavy > 0
    assert policy.decay[heavy].unique().tolist() == [0.5, 1.0]
    faster = near.build({**neutral(near), "decay": 0.5})
    assert torch.equal(faster.decay[heavy], policy.decay[heavy] / 2)
    groups = GroupSpace(LIMIT, SCORES, policy, buckets=SHAPE.kv_heads)
    assert torch.equal(groups.build(neutral(groups)).decay[heavy], policy.decay[heavy])
    for decay in (0.0, 0.3, 1.0):
        moved = groups.build({**neutral(groups), "decay": decay})
        kept = moved.heavy > 0
        assert torch.allclose(moved.decay[kept], (policy.decay * decay / groups.decay).clamp(max=1)[kept])


def test_a_sweep_keeps_the_best_of_at_least_five(tmp_path: Path) -> None:
    land = Landscape()
    sweep = sweep_presets(land, LIMIT, SCORES, path=tmp_path / "presets.json")
    tried = sweep.table[sweep.table["fits"]].groupby("method")["kl"]
    assert (tried.count().drop("tova") >= 5).all()  # which has its stride alone to choose
    for name, policy in sweep.best.items():
        assert Landscape().measure(policy).kl == pytest.approx(tried.min()[name])
    again = Landscape()
    resumed = sweep_presets(again, LIMIT, SCORES, path=tmp_path / "presets.json")
    assert again.measured == []
    assert all(resumed.best[name].same_as(policy) for name, policy in sweep.best.items())


def test_a_sweep_gives_up_what_has_lost_already_and_finds_the_same_best(tmp_path: Path) -> None:
    class Whole(Landscape):
        def measure(self, policy: Policy, watch: Watch | None = None) -> ReplayResult:
            return super().measure(policy)

    land, whole = Landscape(images=32), Whole(images=32)
    sweep = sweep_presets(land, LIMIT, SCORES, path=tmp_path / "presets.json")
    slow = sweep_presets(whole, LIMIT, SCORES)
    assert sweep.best.keys() == slow.best.keys()
    assert all(sweep.best[name].same_as(policy) for name, policy in slow.best.items())
    assert land.replayed < whole.replayed
    given_up = sweep.table["kl"].isna() & sweep.table["fits"]
    assert given_up.any()
    least = sweep.table.groupby("method")["kl"].transform("min")
    assert (sweep.table["at_least"] > least)[given_up].all()
    assert (sweep.table["at_least"] <= slow.table["kl"] * 1.000001)[sweep.table["fits"]].all()
    again = Landscape(images=32)
    resumed = sweep_presets(again, LIMIT, SCORES, path=tmp_path / "presets.json")
    assert again.measured == []
    assert resumed.table.drop(columns="seconds").equals(sweep.table.drop(columns="seconds"))


def test_a_policy_that_one_preset_gives_up_may_be_the_best_of_another(tmp_path: Path) -> None:
    land = Landscape(images=32)
    alone = sweep_presets(land, LIMIT, SCORES, names=["ssd"])
    path = tmp_path / "presets.json"
    write_json(path, {alone.best["ssd"].fingerprint(): {"at_least": 1e-9, "seconds": 0.0}})  # as another preset left it
    again = sweep_presets(land, LIMIT, SCORES, names=["ssd"], path=path)
    assert again.best["ssd"].same_as(alone.best["ssd"])


def test_no_multiplier_changes_nothing() -> None:
    result, _ = run(8)
    space = GroupSpace(LIMIT, SCORES, result.policy)
    again = space.build(neutral(space))
    assert bool((again.window + again.heavy >= result.policy.window + result.policy.heavy).all())  # what was left is spent
    assert (again.window - result.policy.window).abs().max() <= 1
    assert len(space.numbers) == 2 * len(space.groups.unique()) + 1


def test_a_policy_that_is_worse_is_given_up_and_never_the_result() -> None:
    land = Landscape(images=32)
    result, _ = run(40, land=land)
    trials = result.trials
    pruned = trials[trials["state"] == "pruned"]
    assert len(pruned) > 0
    assert (pruned["images"] < 32).any()
    assert land.replayed < 32 * len(land.measured)
    assert result.policy.fingerprint() not in set(pruned["fingerprint"])
    complete = trials[trials["state"] == "complete"]
    assert result.kl == pytest.approx(complete["kl"].min())
    whole, _ = run(40, land=Landscape(images=32), prune=False)
    assert not (whole.trials["state"] == "pruned").any()


def test_without_a_table_optuna_is_alone() -> None:
    config = SearchConfig(trials=12, seed=3)
    alone = PhasedStudy(Landscape(), LIMIT, None, SCORES, config, StudyStore.open(None)).run()
    assert set(alone.trials["phase"].str.split(" ").str[0]) == {"classes", "groups"}
    assert alone.solver is None
    assert alone.incumbents == {}
