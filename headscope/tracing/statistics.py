"""The statistics of a head: pure functions of what the accumulators added up.

A is one head's attention after the softmax; rows are the image queries, columns all keys. Every function returns
float32 [B, h]. A new statistic needs no new trace as long as the accumulators suffice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from headscope.geometry import Geometry
from headscope.tracing.accumulators import Accumulated

Statistic = Callable[[Accumulated, Geometry], torch.Tensor]

# Raised whenever a definition below changes; written into every trace.
DEFINITIONS = 1
SINK = 0.3  # Gu et al. 2410.10781
CONCENTRATED = 0.05  # share of the columns that column_concentration calls heavy


def neighbourhood(radius: int) -> Statistic:
    """Attention to image tokens within `radius` rows and columns of the query, itself included. Range 0 .. 1."""

    def statistic(a: Accumulated, geometry: Geometry) -> torch.Tensor:
        return _near(a.offsets, geometry, radius) / a.queries

    return statistic


def sparsity(radius: int) -> Statistic:
    """SSD's score (2510.18716): share of attention outside the neighbourhood, the prefix counting as such. Range 0 .. 1."""

    def statistic(a: Accumulated, geometry: Geometry) -> torch.Tensor:
        return 1 - _near(a.offsets, geometry, radius) / a.queries

    return statistic


def sparsity_image(radius: int) -> Statistic:
    """SSD's score among image keys alone: each query's attention to the image is scaled to 1 first. Range 0 .. 1."""

    def statistic(a: Accumulated, geometry: Geometry) -> torch.Tensor:
        return 1 - _near(a.offsets_image, geometry, radius) / a.queries

    return statistic


def mean_distance(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Mean attention distance (Dosovitskiy 2021, Raghu 2021): mean_q sum_k A |pos_q - pos_k|, Euclidean on the grid,
    image keys only, renormalised. Unit: cells, from 0 to the diagonal of the image."""
    rows = torch.arange(geometry.rows, device=a.offsets.device, dtype=torch.float32)
    across = torch.arange(1 - geometry.row_length, geometry.row_length, device=a.offsets.device, dtype=torch.float32)
    far = torch.hypot(rows[:, None], across[None])
    return (a.offsets_image * far).sum((2, 3)) / a.queries


def prefix_mass(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Attention to the prefix. Range 0 .. 1."""
    return a.columns[..., : a.prefix].sum(-1) / a.queries


def first_token_mass(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Attention to the sequence's first token that is no padding, StreamingLLM's sink (2309.17453). Range 0 .. 1."""
    first = a.prefix_seen.int().argmax(1)
    return a.columns.gather(2, first[:, None, None].expand(-1, a.columns.shape[1], 1)).squeeze(2) / a.queries


def margin_mass(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Attention to the leftmost and the rightmost column of the image, where SSD sees meaning collect. Range 0 .. 1."""
    column = geometry.coordinates()[1][: a.queries].to(a.columns.device)
    margin = (column == 0) | (column == geometry.cols - 1)
    return a.columns[..., a.prefix :][..., margin].sum(-1) / a.queries


def entropy(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """mean_q of -sum_k A log A over log(number of visible keys). Range 0 .. 1."""
    return a.entropy / a.queries


def sink_rate(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Share of the keys that are sinks (Gu et al. 2410.10781): alpha_k = sum_{i>=k} A[i, k] / (queries that see k) > 0.3.

    Keys are the prefix without its padding and the image. Range 0 .. 1.
    """
    counts, valid = _visits(a)
    sinks = (a.columns / counts > SINK) & valid[:, None]
    return sinks.sum(-1) / valid.sum(1)[:, None]


def column_concentration(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Share of the attention to the image that its 5 % most attended keys receive. Range 0.05 .. 1."""
    image = a.columns[..., a.prefix :]
    top = image.topk(max(1, math.ceil(CONCENTRATED * a.queries)), -1).values.sum(-1)
    return top / image.sum(-1).clamp(min=1e-12)


def column_variance(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """Variance over the queries that see it of each image key's column of A, averaged (HACK, 2504.09261). Range 0 .. 0.25."""
    counts, _ = _visits(a)
    mean, square = a.columns / counts, a.squares / counts
    return (square - mean.square()).clamp(min=0)[..., a.prefix :].mean(-1)


def verticality(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """-H(mean_q A[q]) (Yang, Liu & Lee 2006.03265). Nats, from -log(keys) for even columns to 0 for a single one."""
    return -torch.special.entr(a.columns / a.queries).sum(-1)


def diagonality(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """-mean_q sum_k |q - k| A[q, k] / T, T the tokens of the sequence (Yang, Liu & Lee 2006.03265). Range -1 .. 0."""
    tokens = a.prefix_seen.sum(1)[:, None] + a.queries
    return -a.distance / (a.queries * tokens)


def lag_mass(a: Accumulated, geometry: Geometry) -> torch.Tensor:
    """float32 [B, h, N]: attention to the image token `lag` before the query, mean over all queries; lag 0 is the query.

    The sum over lags is 1 - prefix_mass. Range 0 .. 1.
    """
    row, width = geometry.row_length, 2 * geometry.row_length - 1
    down = torch.arange(geometry.rows)[:, None]
    lag = down * row - (torch.arange(width)[None] - (row - 1))
    lag = torch.where(lag >= 0, lag, geometry.tokens).clamp(max=geometry.tokens).flatten().to(a.offsets.device)
    flat = a.offsets.flatten(2)
    sums = flat.new_zeros(*flat.shape[:2], geometry.tokens + 1).index_add_(2, lag, flat)
    return sums[..., :-1] / a.queries


def at_lag(lag_of: Callable[[Geometry], int]) -> Statistic:
    """Share of A on one sub-diagonal (previous-token score and its kin in an image). Range 0 .. 1."""

    def statistic(a: Accumulated, geometry: Geometry) -> torch.Tensor:
        return lag_mass(a, geometry)[..., lag_of(geometry)]

    return statistic


STATISTICS: dict[str, Statistic] = {
    "neighbourhood_1": neighbourhood(1),
    "neighbourhood_2": neighbourhood(2),
    "sparsity_1": sparsity(1),
    "sparsity_2": sparsity(2),
    "sparsity_image_1": sparsity_image(1),
    "sparsity_image_2": sparsity_image(2),
    "mean_distance": mean_distance,
    "prefix_mass": prefix_mass,
    "first_token_mass": first_token_mass,
    "margin_mass": margin_mass,
    "entropy": entropy,
    "sink_rate": sink_rate,
    "column_concentration": column_concentration,
    "previous_token": at_lag(lambda geometry: 1),
    "row_above": at_lag(lambda geometry: geometry.row_length),
    "self_mass": at_lag(lambda geometry: 0),
    "column_variance": column_variance,
    "verticality": verticality,
    "diagonality": diagonality,
}


def _near(offsets: torch.Tensor, geometry: Geometry, radius: int) -> torch.Tensor:
    middle = geometry.row_length - 1
    columns = slice(max(middle - radius, 0), middle + radius + 1)
    return offsets[:, :, : radius + 1, columns].sum((2, 3))


def _visits(a: Accumulated) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries that see each key, float32 [P + Q], and which keys are no padding, bool [B, P + Q]."""
    device = a.columns.device
    image = torch.arange(a.queries, 0, -1, dtype=torch.float32, device=device)
    counts = torch.cat([torch.full((a.prefix,), float(a.queries), device=device), image])
    valid = torch.cat([a.prefix_seen, a.prefix_seen.new_ones(len(a.prefix_seen), a.queries)], 1)
    return counts, valid
