"""From mass by 2-D offset to mass by lag, by ring, and in a neighbourhood. The middle column is the query's own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from headscope.geometry import Geometry
from headscope.tracing.accumulated import Accumulated


def once(a: Accumulated, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What several statistics of the same sums need is made once: the tensor called `name`."""
    made: dict[str, torch.Tensor] = a.__dict__.setdefault("_made", {})
    if name not in made:
        made[name] = make()
    return made[name]


def near(offsets: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum over the offsets within `radius` rows and columns: [..., rows, 2L - 1] -> [...]."""
    middle = (offsets.shape[-1] - 1) // 2
    columns = slice(max(middle - radius, 0), middle + radius + 1)
    return offsets[..., : radius + 1, columns].sum((-2, -1))


def lags(offsets: torch.Tensor) -> torch.Tensor:
    """Sum over the offsets of each lag, the number of tokens back in raster order: [..., rows, 2L - 1] -> [..., N]."""
    rows, width = offsets.shape[-2:]
    length = (width + 1) // 2
    lag = torch.arange(rows)[:, None] * length - (torch.arange(width)[None] - (length - 1))
    lag = torch.where(lag >= 0, lag, rows * length).clamp(max=rows * length).flatten().to(offsets.device)
    flat = offsets.flatten(-2)
    sums = flat.new_zeros(*flat.shape[:-1], rows * length + 1).index_add_(-1, lag, flat)
    return sums[..., :-1]


def rings(offsets: torch.Tensor) -> torch.Tensor:
    """Sum over the offsets of each distance max(rows, columns): [..., rows, 2L - 1] -> [..., max(rows, L)]."""
    rows, width = offsets.shape[-2:]
    length = (width + 1) // 2
    distance = torch.maximum(torch.arange(rows)[:, None], (torch.arange(width) - (length - 1)).abs()[None])
    flat = offsets.flatten(-2)
    index = distance.flatten().to(offsets.device)
    return flat.new_zeros(*flat.shape[:-1], max(rows, length)).index_add_(-1, index, flat)


def pairs(a: Accumulated) -> torch.Tensor:
    """float32 [rows, 2L - 1]: how many of the queries have an image key at each offset."""
    g: Geometry = a.geometry
    length, device = g.row_length, a.offsets.device
    asked = torch.bincount(a.queries, minlength=g.tokens).float().view(g.rows, length)
    at_least = asked.flip(0).cumsum(0).flip(0)  # [rows up, column]: queries with so many rows above them
    column, right = torch.arange(length, device=device), torch.arange(1 - length, length, device=device)
    inside = (column[:, None] + right >= 0) & (column[:, None] + right < length)
    made = at_least @ inside.float()
    made[0, length:] = 0  # what lies to the right in a query's own row comes after it
    return made
