"""95 % intervals, by scipy: percentile bootstraps of means and rank correlations, Wilson's interval of a share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def mean_interval(*parts: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the mean of the parts' means, by a percentile bootstrap within each.

    Args:
        parts: values [n] each, such as a loss an image.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    from scipy.stats import bootstrap

    def overall(*chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([part.mean(axis) for part in chosen], 0)

    two = [np.repeat(part, 2) if len(part) == 1 else part for part in parts]  # scipy takes two or more
    found = bootstrap(two, overall, n_resamples=resamples, vectorized=True, method="percentile", rng=seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, ...]:
    """Spearman's correlation and its 95 % interval, by a percentile bootstrap over the pairs.

    Args:
        x: values [n].
        y: as many.
        seed: of the bootstrap.

    Returns:
        correlation, low, high; no numbers below three pairs, or where one side is the same everywhere.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan"), float("nan")

    def spearman(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        ranks = [rankdata(side, axis=axis) for side in (one, other)]
        ranks = [side - side.mean(axis, keepdims=True) for side in ranks]
        spread = np.sqrt((ranks[0] ** 2).sum(axis) * (ranks[1] ** 2).sum(axis))
        return np.asarray((ranks[0] * ranks[1]).sum(axis) / np.where(spread > 0, spread, np.nan))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # said of resamples that have no correlation; they are left out
        found = bootstrap((x, y), spearman, n_resamples=RESAMPLES, paired=True, vectorized=True, method="percentile", rng=seed)
    resampled = found.bootstrap_distribution[np.isfinite(found.bootstrap_distribution)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(spearman(x, y)), float(low), float(high)


def share_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927).

    Args:
        right: of `count`.
        count: one or more.
    """
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
