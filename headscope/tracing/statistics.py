"""The statistics of a head: pure functions of what the accumulators added up.

A is one head's attention after the softmax; rows are the image queries, columns all keys. Every function returns float32
[B, h]; curves.py has those that return more. A new statistic needs no new trace as long as the accumulators suffice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from headscope.tracing.accumulated import Accumulated
from headscope.tracing.catalogue import Function, statistic
from headscope.tracing.offsets import lags, near, once, pairs, rings

SINK = 0.3  # Gu et al. 2410.10781
CONCENTRATED = 0.05  # share of the columns that column_concentration calls heavy
TENTH = 0.1  # of the image, what `best_tenth` and `running_tenth` may keep


def _named(text: str, function: Function) -> Function:
    function.__doc__ = text
    return function


def _near(radius: int, start: str, *, image: bool = False, outside: bool = False) -> Function:
    cells = "1 row and column" if radius == 1 else f"{radius} rows and columns"

    def function(a: Accumulated) -> torch.Tensor:
        inside = near(a.offsets_image if image else a.offsets, radius) / a.count
        return 1 - inside if outside else inside

    return _named(f"{start} image tokens within {cells} of the query, itself included.", function)


_SPARSITY = "SSD's score (2510.18716), share of attention outside the neighbourhood, the prefix counting as outside: all but"
_SPARSITY_IMAGE = (
    "SSD's score (2510.18716) among image keys alone, each query's attention to the image scaled to 1 first: all but"
)
for _radius in (1, 2):
    statistic(f"neighbourhood_{_radius}", means="spatial")(_near(_radius, "Attention to"))
    statistic(f"sparsity_{_radius}", means="semantic")(_near(_radius, _SPARSITY, outside=True))
    statistic(f"sparsity_image_{_radius}", means="semantic")(_near(_radius, _SPARSITY_IMAGE, image=True, outside=True))


@statistic("mean_distance", high="diagonal of the image", unit="cells", means="semantic")
def mean_distance(a: Accumulated) -> torch.Tensor:
    """Mean attention distance (Dosovitskiy 2021, Raghu 2021): mean_q sum_k A |pos_q - pos_k|, Euclidean on the grid, image
    keys only, each query's attention to the image scaled to 1."""
    length, device = a.geometry.row_length, a.offsets.device
    rows = torch.arange(a.geometry.rows, device=device, dtype=torch.float32)
    across = torch.arange(1 - length, length, device=device, dtype=torch.float32)
    return (a.offsets_image * torch.hypot(rows[:, None], across[None])).sum((2, 3)) / a.count


@statistic("half_mass_distance", high="sides of the image", unit="cells", means="semantic")
def half_mass_distance(a: Accumulated) -> torch.Tensor:
    """Half-mass distance: the smallest d such that at least half of the attention to the image, each query's scaled to 1,
    lies within d rows and d columns of the query."""
    mass = rings(a.offsets_image)
    reached = mass.cumsum(-1) >= 0.5 * mass.sum(-1, keepdim=True)
    return reached.int().argmax(-1).float()


@statistic("half_mass_lag", high="tokens of the image", unit="tokens", means="semantic")
def half_mass_lag(a: Accumulated) -> torch.Tensor:
    """The smallest lag w such that at least half of the attention to the image falls on the query and the w tokens before it.
    A head that reads the row above has it at a row's length: in two dimensions that is a distance of 1."""
    mass = once(a, "lags", lambda: lags(a.offsets))
    reached = mass.cumsum(-1) >= 0.5 * mass.sum(-1, keepdim=True)
    return reached.int().argmax(-1).float()


def _decay(power: bool, fit: bool) -> Function:
    law = "power law A(d) = c d^-s" if power else "exponential A(d) = c exp(-s d)"
    what = "R^2, the goodness of fit," if fit else "The rate s"
    text = (
        f"{what} of the {law}: least squares of log A(d) on {'log d' if power else 'd'}, where A(d) is the mean attention of a "
        "query to an image token d = max(rows, columns) away, over all pairs at that distance, d >= 1; means below 1e-8 "
        "count as 1e-8. In a text (one row) d is the lag."
    )

    def function(a: Accumulated) -> torch.Tensor:
        visits = once(a, "visits", lambda: rings(pairs(a)))
        with_any = torch.nonzero(visits[1:] > 0).flatten() + 1
        mean = (once(a, "rings", lambda: rings(a.offsets))[..., with_any] / visits[with_any]).clamp(min=1e-8).log().double()
        distance = with_any.double().log() if power else with_any.double()
        if len(with_any) < 2:
            return torch.full(mean.shape[:-1], math.nan, device=mean.device)
        x = distance - distance.mean()
        y = mean - mean.mean(-1, keepdim=True)
        slope = (y @ x) / x.square().sum()
        if not fit:
            return -slope.float()
        left = (y - slope[..., None] * x).square().sum(-1)
        whole = y.square().sum(-1)
        return torch.where(whole > 1e-20, 1 - left / whole.clamp(min=1e-20), 1.0).clamp(min=0).float()

    return _named(text, function)


statistic("decay_exponential", low="-inf", high="inf", unit="1 / cell", means="spatial")(_decay(False, False))
statistic("decay_exponential_fit", unit="R^2")(_decay(False, True))
statistic("decay_power", low="-inf", high="inf", unit="exponent", means="spatial")(_decay(True, False))
statistic("decay_power_fit", unit="R^2")(_decay(True, True))


@statistic("window_row", means="spatial")
def window_row(a: Accumulated) -> torch.Tensor:
    """Coverage by the last row: attention to the query and the row_length image tokens before it, which reach the cell
    above. The whole curve is `window_coverage`."""
    return once(a, "lags", lambda: lags(a.offsets))[..., : a.geometry.row_length + 1].sum(-1) / a.count


@statistic("prefix_mass", means="semantic")
def prefix_mass(a: Accumulated) -> torch.Tensor:
    """Attention to the prefix (prompt and begin-of-image)."""
    return a.columns[..., : a.prefix].sum(-1) / a.count


@statistic("first_token_mass", means="semantic")
def first_token_mass(a: Accumulated) -> torch.Tensor:
    """Attention to the sequence's first token that is no padding, StreamingLLM's sink (2309.17453)."""
    first = functional.pad(a.prefix_seen.int(), (0, 1), value=1).argmax(1)  # without a prefix the first image token
    return a.columns.gather(2, first[:, None, None].expand(-1, a.squares.shape[1], 1)).squeeze(2) / a.count


def _margin(left: bool, right: bool) -> Function:
    sides = "the leftmost and the rightmost column" if left and right else f"the {'left' if left else 'right'}most column"

    def function(a: Accumulated) -> torch.Tensor:
        column = torch.arange(a.fed, device=a.squares.device) % a.geometry.row_length
        margin = (left & (column == 0)) | (right & (column == a.geometry.cols - 1))
        return a.columns[..., a.prefix :][..., margin].sum(-1) / a.count

    return _named(f"Attention to {sides} of the image, where SSD (2510.18716) sees meaning collect.", function)


statistic("margin_mass", means="semantic")(_margin(True, True))
statistic("margin_left", means="semantic")(_margin(True, False))
statistic("margin_right", means="semantic")(_margin(False, True))


@statistic("entropy", unit="share of log(keys)", means="semantic")
def entropy(a: Accumulated) -> torch.Tensor:
    """mean_q of -sum_k A log A over log(number of keys that the query sees)."""
    return a.entropy.sum(2) / a.count


@statistic("sink_rate", unit="share of keys", means="semantic")
def sink_rate(a: Accumulated) -> torch.Tensor:
    """Share of the keys that are sinks (Gu et al. 2410.10781): alpha_k = sum_{i>=k} A[i, k] / (queries that see k) > 0.3. Keys
    are the prefix without its padding and the image."""
    counts, valid = a.visits()
    sinks = (a.columns / counts.clamp(min=1) > SINK) & valid[:, None]
    return sinks.sum(-1) / valid.sum(1)[:, None]


@statistic("column_concentration", low=CONCENTRATED, means="semantic")
def column_concentration(a: Accumulated) -> torch.Tensor:
    """Share of the attention to the image that its 5 % most attended tokens receive."""
    image = a.columns[..., a.prefix :]
    top = image.topk(max(1, math.ceil(CONCENTRATED * a.fed)), -1).values.sum(-1)
    return top / image.sum(-1).clamp(min=1e-12)


def _at_lag(text: str, lag_of: Callable[[Accumulated], int]) -> Function:
    def function(a: Accumulated) -> torch.Tensor:
        lag = lag_of(a)
        mass = once(a, "lags", lambda: lags(a.offsets))
        return mass[..., lag] / a.count if lag < mass.shape[-1] else torch.zeros_like(mass[..., 0])

    return _named(text, function)


statistic("previous_token", means="spatial")(
    _at_lag("Previous-token score: share of A on the first sub-diagonal.", lambda a: 1),
)


def _above(ahead: int, whose: str) -> Function:
    """The cell above the token `ahead` tokens after the query; a query is about to draw the token 1 ahead."""
    length = "a row's length" if not ahead else f"a row's length {'less' if ahead > 0 else 'and'} 1"
    text = f"Share of A on the sub-diagonal of {length}: the cell above {whose}."
    return _at_lag(text, lambda a: a.geometry.row_length - ahead)


statistic("row_above", means="spatial")(_above(0, "the query"))
statistic("row_above_left", means="spatial")(_above(-1, "and left of the query"))
statistic("row_above_right", means="spatial")(
    _above(1, "and right of the query, which is above the token that the query is about to draw, also across the end of a row")
)
statistic("self_mass")(_at_lag("Attention of a query to its own token.", lambda a: 0))


@statistic("column_variance", high=0.25, unit="squared share", means="spatial")
def column_variance(a: Accumulated) -> torch.Tensor:
    """Variance over the queries that see it of each image key's column of A, averaged (HACK, 2504.09261)."""
    counts, valid = a.visits()
    counts = counts.clamp(min=1)
    mean, square = a.columns / counts, a.squares / counts
    image = (square - mean.square()).clamp(min=0)[..., a.prefix :]
    return image.sum(-1) / valid[:, None, a.prefix :].sum(-1)


@statistic("verticality", low="-log(keys)", high=0.0, unit="nats", means="semantic")
def verticality(a: Accumulated) -> torch.Tensor:
    """-H(mean_q A[q]) (Yang, Liu & Lee 2006.03265); 0 where all queries read a single key."""
    return -torch.special.entr(a.columns / a.count).sum(-1)


@statistic("diagonality", low=-1.0, high=0.0, unit="share of T", means="spatial")
def diagonality(a: Accumulated) -> torch.Tensor:
    """-mean_q sum_k |q - k| A[q, k] / T, T the tokens of the sequence (Yang, Liu & Lee 2006.03265)."""
    # A query stands behind all that it sees, and its weights sum to 1: the distance is its place less the mean place.
    prefix = a.prefix_seen.sum(1)[:, None]
    image = torch.arange(a.fed, device=a.squares.device) + prefix
    place = torch.cat([a.prefix_seen.long().cumsum(1) - 1, image], 1).double()
    asked = (a.queries[None] + prefix).double().sum(1)[:, None]
    seen = torch.einsum("bhk,bk->bh", a.columns.double(), place)
    return -((asked - seen) / (a.count * (prefix + a.fed))).float()


def _persistence(ahead: int) -> Function:
    text = (
        f"Heavy-hitter persistence: the share of the m image tokens most attended by row r that are among the m most attended "
        f"by row r + {ahead} too; only tokens before row r compete, m is a row's length, mean over r from 2 (there must be 2 m "
        "tokens). By chance it would be m over the number of tokens. No number where the image has too few rows."
    )

    def function(a: Accumulated) -> torch.Tensor:
        length = a.geometry.row_length
        asked = set((a.queries // length).tolist())
        rows = [r for r in range(2, a.geometry.rows - ahead) if r in asked and r + ahead in asked]
        if not rows:
            return torch.full(a.squares.shape[:2], math.nan, device=a.squares.device)
        total = torch.zeros(a.squares.shape[:2], device=a.squares.device)
        for r in rows:
            older = slice(a.prefix, a.prefix + r * length)
            sets = []
            for row in (r, r + ahead):
                top = a.row_columns[:, :, row, older].topk(length, -1).indices
                sets.append(torch.zeros_like(a.row_columns[:, :, row, older]).scatter_(-1, top, 1.0))
            total += (sets[0] * sets[1]).sum(-1) / length
        return total / len(rows)

    return _named(text, function)


statistic("persistence_1", means="semantic", full=True)(_persistence(1))
statistic("persistence_4", means="semantic", full=True)(_persistence(4))


def _tenth(running: bool) -> Function:
    how = "with the largest running score, the attention each received from all earlier queries (H2O, 2306.14048)"
    what = how if running else "that the query itself attends to most: an upper bound for any choice"

    def function(a: Accumulated) -> torch.Tensor:
        sums = a.best_running if running else a.best
        assert sums is not None
        assert a.sorted_queries is not None
        return sums[..., max(1, math.ceil(TENTH * a.geometry.tokens)) - 1] / len(a.sorted_queries)

    return _named(f"Attention to the m image tokens before the query {what}; m is a tenth of the image.", function)


statistic("best_tenth", full=True)(_tenth(False))
statistic("running_tenth", full=True, means="semantic")(_tenth(True))
