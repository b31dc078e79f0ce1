"""The knapsack: against brute force, within the room, within the buckets."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import BudgetError
from headscope.geometry import Geometry
from headscope.policy import CacheSpec
from headscope.policy.footprint import Limit
from headscope.policy.shape import ModelShape
from headscope.tuning.measure.options import Losses, Option, default_options, interpolated, table_stride
from headscope.tuning.propose.knapsack import allocate, solve
from headscope.tuning.propose.relaxation import SETS, medians, relax

SHAPE = ModelShape("toy", 2, 2, 2, 4, Geometry(4, 4), "a", "w")


def best_by_trying(loss: np.ndarray, cost: np.ndarray, room: float, buckets: int) -> float:
    layers, heads, options = loss.shape
    best = np.inf
    for choice in product(range(options), repeat=layers * heads):
        grid = np.array(choice).reshape(layers, heads)
        if cost[grid].sum() <= room and all(len(set(row)) <= buckets for row in grid.tolist()):
            best = min(best, np.take_along_axis(loss, grid[..., None], -1).sum())
    return best


@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_the_least_loss_is_found(seed: int, buckets: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    loss = rng.random((2, 2, 4))
    cost = np.sort(rng.integers(1, 20, 4)).astype(float)
    room = 4 * (cost.min() + share * (cost.max() - cost.min()))
    found = allocate(loss, cost, room, buckets)
    expected = best_by_trying(loss, cost, room, buckets)
    assert found is not None
    assert found.nbytes <= room
    assert max(len(set(row)) for row in found.choice.tolist()) <= buckets
    assert found.loss <= expected * (1 + 2e-3) + 1e-9
    quick = relax(loss, cost, room, buckets)
    assert quick is not None
    assert quick.nbytes <= room


def many_options(layers: int, heads: int, options: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes times bits: losses that fall with the size, over a floor that bits leave, and an option that keeps everything."""
    rng = np.random.default_rng(seed)
    size, bits = np.sort(rng.uniform(2, 560, options)), rng.choice(3, options)
    cost = 100 + size * np.array([96, 52, 30])[bits]
    scale, fall = np.exp(rng.normal(-9, 2.2, (layers, heads, 1))), np.exp(rng.normal(-4.5, 1, (layers, heads, 1)))
    noise = np.exp(rng.normal(0, 0.15, (layers, heads, options)))
    floor = np.array([0.0, 1e-5, 1e-3])[bits] * np.exp(rng.normal(0, 1.5, (layers, heads, 1)))
    loss = np.concatenate([scale * np.exp(-fall * size) * noise + floor, np.zeros((layers, heads, 1))], -1)
    return loss, np.append(cost, 577 * 96.0)


@pytest.mark.parametrize(("seed", "share"), [(1, 0.3), (2, 0.2), (3, 0.1), (4, 0.05)])
def test_with_many_options_prices_and_swaps_lose_at_most_half_a_per_cent(seed: int, share: float) -> None:
    loss, cost = many_options(8, 8, 40, seed)
    room, buckets = share * 64 * cost.max(), 3
    assert comb(len(cost), buckets) > SETS
    proved, quick = allocate(loss, cost, room, buckets), relax(loss, cost, room, buckets)
    assert proved is not None
    assert quick is not None
    assert proved.exact
    assert quick.nbytes <= room
    assert max(len(set(row)) for row in quick.choice.tolist()) <= buckets
    assert quick.loss <= 1.005 * proved.loss


def test_a_model_of_960_heads_and_400_options_gets_an_allocation_within_the_room_and_the_buckets() -> None:
    loss, cost = many_options(30, 32, 400, 5)
    room = 0.1 * 960 * cost.max()
    found = allocate(loss, cost, room, 3)
    assert found is not None
    assert 0.99 * room < found.nbytes <= room
    assert max(len(set(row)) for row in found.choice.tolist()) <= 3
    assert found.loss == pytest.approx(np.take_along_axis(loss, found.choice[..., None], -1).sum())
    alike = np.take_along_axis(loss, np.full((30, 32, 1), np.flatnonzero(cost <= room / 960)[-1]), -1).sum()
    assert found.loss < 0.7 * alike  # every head alike


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_no_exchange_of_one_kind_for_another_helps_a_layer(seed: int, count: int) -> None:
    priced = np.random.default_rng(seed).random((4, 7))
    kinds = medians(priced, count, [])
    least = priced[:, kinds].min(1).sum()
    assert len(kinds) == len(set(kinds)) <= count
    for place, other in product(range(len(kinds)), range(7)):
        changed = [*kinds[:place], other, *kinds[place + 1 :]]
        assert priced[:, changed].min(1).sum() >= least - 1e-9


def test_nothing_fits_in_too_little_room() -> None:
    assert allocate(np.ones((2, 2, 3)), np.array([5.0, 6.0, 7.0]), 19.0, 3) is None


@given(st.integers(0, 1000), st.floats(0.35, 1.0), st.sampled_from([1, 2, 4]))
@settings(max_examples=20, deadline=None)
def test_a_solved_policy_keeps_to_the_limit(seed: int, keep: float, stride: int) -> None:
    rng = np.random.default_rng(seed)
    options = (Option(0), Option(2), Option(5), Option(1, 3), Option(4, 6), Option(15))
    loss = np.sort(rng.random((2, 2, len(options))))[..., ::-1].copy()
    loss[..., -1] = 0.0
    limit = Limit.of_share(keep, CacheSpec(SHAPE, 3))
    policy = solve(Losses(options, loss, stride), limit, stride, buckets=2, anchor=1)
    assert CacheSpec(policy.shape, policy.prefix).bytes_of(policy) <= limit.bytes
    assert all(len(policy.buckets(layer)) <= 2 for layer in range(2))


def test_a_limit_below_every_option_says_what_is_needed() -> None:
    losses = Losses((Option(8), Option(15)), np.array([[[1.0, 0.0]] * 2] * 2), 1)
    with pytest.raises(BudgetError, match="smallest takes"):
        solve(losses, Limit.of_share(0.3, CacheSpec(SHAPE, 3)), 1)


def test_the_head_that_needs_most_gets_most() -> None:
    options = (Option(0), Option(8), Option(15))
    loss = np.zeros((2, 2, 3))
    loss[..., 0], loss[..., 1] = 0.1, 0.05
    loss[1, 0] = [9.0, 5.0, 0.0]
    policy = solve(Losses(options, loss, 1), Limit.of_share(0.5, CacheSpec(SHAPE, 3)), 1, interpolate=False)
    assert policy.window.argmax() == 2
    assert torch.equal(policy.window[1, 0], torch.tensor(15, dtype=torch.int32))


def test_at_another_stride_scores_fade_as_much_in_as_many_tokens() -> None:
    options = (Option(2), Option(2, 6, 0.5), Option(2, 6, 1.0), Option(15))
    losses = Losses(options, np.zeros((2, 2, 4)), 2)
    assert losses.at_stride(4).options == (Option(2), Option(2, 5, 0.25), Option(2, 5, 1.0), Option(15))
    assert losses.at_stride(1).options[1].decay == pytest.approx(0.5**0.5)
    assert losses.at_stride(2) is losses


@given(st.lists(st.floats(0.0, 2.0), min_size=5, max_size=5), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_size_between_two_loses_no_more_than_the_chord_says(drawn: list[float], between: int) -> None:
    options = (Option(2, 0), Option(2, 3, 0.5), Option(2, 3), Option(2, 11, 0.5), Option(2, 11), Option(15))
    loss = np.array([[[*sorted(drawn, reverse=True), 0.0]]])
    known = dict(zip(options, loss[0, 0], strict=True))
    more = interpolated(Losses(options, loss, 1), between)
    found = dict(zip(more.options, more.loss[0, 0], strict=True))
    assert {option: found[option] for option in options} == known
    for option in set(found) - set(options):
        small, large = known[Option(2, 3, option.decay)], known[Option(2, 11, option.decay)]
        share = (option.heavy - 3) / 8
        assert large - 1e-12 <= found[option] <= (1 - share) * small + share * large + 0.125 * (small - large) + 1e-12
    assert len(found) == len(options) + 2 * between


def test_a_size_between_one_that_was_not_measured_and_another_is_not_measured() -> None:
    options = (Option(2, 3), Option(2, 11), Option(15))
    more = interpolated(Losses(options, np.array([[[np.inf, 1.0, 0.0], [4.0, 1.0, 0.0]]]), 1))
    middle = more.loss[0, :, more.options.index(Option(2, 7))]
    assert middle[0] == np.inf
    assert middle[1] == pytest.approx(2.0)


def test_options_grow_with_the_grid() -> None:
    options = default_options(Geometry(24, 24))
    assert Option(26, 48, 0.85) in options
    assert Option(96) in options
    assert len(options) == len(set(options)) == 16
    assert table_stride(Geometry(24, 24)) == 6
    small = default_options(Geometry(4, 4))
    assert small
    assert all(option.window + option.heavy < 15 for option in small)
