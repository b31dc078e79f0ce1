"""Intervals against what they are: numbers sorted by hand, known ones, and nothing where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest

from headscope.intervals import mean_interval, rank_correlation, share_interval


def test_a_mean_lies_between_its_ends_and_one_value_has_none() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    low, high = mean_interval(values, seed=1)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert mean_interval(values, seed=1) == (low, high)
    assert mean_interval(np.array([3.0])) == (3.0, 3.0)


def test_parts_count_alike_whatever_their_size() -> None:
    low, high = mean_interval(np.zeros(100), np.ones(3))
    assert (low, high) == (0.5, 0.5)


def test_wilson_intervals_match_known_ones() -> None:
    assert share_interval(95, 100) == pytest.approx((0.888, 0.978), abs=1e-3)
    assert share_interval(10, 10)[1] == pytest.approx(1.0)


def test_ranks_agree_whatever_the_numbers() -> None:
    x = np.arange(30.0)
    assert rank_correlation(x, np.exp(x)) == pytest.approx((1.0, 1.0, 1.0))
    correlation, low, high = rank_correlation(x, np.random.default_rng(0).permutation(30))
    assert low < correlation < high
    assert all(np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])))
    assert all(np.isnan(rank_correlation([1.0, 2.0], [1.0, 2.0])))
