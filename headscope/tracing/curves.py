"""The curves of a head: float32 [B, h, ...], pure functions of the accumulators as in statistics.py."""

from __future__ import annotations

import torch

from headscope.tracing.accumulated import Accumulated
from headscope.tracing.catalogue import statistic
from headscope.tracing.offsets import lags, once


@statistic("footprint", shape="rows x (2 row_length - 1)")
def footprint(a: Accumulated) -> torch.Tensor:
    """Locality by 2-D offset: attention to the image token so many rows up and columns right, mean over all queries. It sums
    to 1 - prefix_mass."""
    return a.offsets / a.count


@statistic("lag_mass", shape="N")
def lag_mass(a: Accumulated) -> torch.Tensor:
    """Locality by lag: attention to the image token `lag` before the query, mean over all queries; lag 0 is the query itself.
    It sums to 1 - prefix_mass."""
    return once(a, "lags", lambda: lags(a.offsets)) / a.count


@statistic("window_coverage", shape="N")
def window_coverage(a: Accumulated) -> torch.Tensor:
    """Coverage by the last w image tokens and the query itself, for every w from 0: what a window of w tokens catches."""
    return lag_mass(a).cumsum(-1)


@statistic("entropy_by_row", shape="rows", unit="share of log(keys)")
def entropy_by_row(a: Accumulated) -> torch.Tensor:
    """Entropy as in `entropy`, mean over the queries of each row; no number for a row without queries."""
    asked = torch.bincount(a.queries.cpu() // a.geometry.row_length, minlength=a.geometry.rows)
    return a.entropy / asked.to(a.entropy.device)


@statistic("column_profile", shape="N")
def column_profile(a: Accumulated) -> torch.Tensor:
    """Mean attention that each image token receives from the queries that see it (alpha_k of Gu et al. 2410.10781)."""
    counts, _ = a.visits()
    found = (a.columns / counts.clamp(min=1))[..., a.prefix :]
    return torch.nn.functional.pad(found, (0, a.geometry.tokens - a.fed))


@statistic("best_coverage", shape="N", full=True)
def best_coverage(a: Accumulated) -> torch.Tensor:
    """Coverage by the m + 1 best image tokens before the query, for every m from 0, the best by the query's own attention: an
    upper bound for what m + 1 heavy tokens can catch."""
    assert a.best is not None
    assert a.sorted_queries is not None
    return a.best / max(len(a.sorted_queries), 1)


@statistic("running_coverage", shape="N", full=True)
def running_coverage(a: Accumulated) -> torch.Tensor:
    """Coverage by the m + 1 best image tokens before the query, for every m from 0, the best by running score (attention
    received from all earlier queries, ties to the newer): what a cache that had dropped nothing before can catch."""
    assert a.best_running is not None
    assert a.sorted_queries is not None
    return a.best_running / max(len(a.sorted_queries), 1)
