"""What the attention of a layer adds up to: all that a statistic may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from headscope.geometry import Geometry


@dataclass
class Accumulated:
    """Sums over some queries of one layer, for B sequences and h query heads.

    Attributes:
        geometry: of the image.
        prefix: P, prefix positions, padding included.
        fed: image tokens that were keys.
        queries: int64 [Q], image tokens t that were asked.
        prefix_seen: bool [B, P], prefix positions that are no padding.
        row_columns: float32 [B, h, rows, P + fed], attention each key received from the queries of each row.
        squares: float32 [B, h, P + fed], squared attention each key received.
        offsets: float32 [B, h, rows, 2 * row_length - 1], attention to image keys by (rows up, columns right), the
            column offset from -(row_length - 1) to row_length - 1.
        offsets_image: the same with each query's attention to the image scaled to sum to 1.
        entropy: float32 [B, h, rows], sum over the queries of each row of H / log(visible keys).
        best: float32 [B, h, N] or None (only in the full set): attention to the m + 1 most attended image tokens before
            the query, summed over `sorted_queries`.
        best_running: the same for those with the largest running score.
        sorted_queries: int64, the queries that `best` and `best_running` are about.
    """

    geometry: Geometry
    prefix: int
    fed: int
    queries: torch.Tensor
    prefix_seen: torch.Tensor
    row_columns: torch.Tensor
    squares: torch.Tensor
    offsets: torch.Tensor
    offsets_image: torch.Tensor
    entropy: torch.Tensor
    best: torch.Tensor | None = None
    best_running: torch.Tensor | None = None
    sorted_queries: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """Q, the number of queries."""
        return len(self.queries)

    @cached_property
    def columns(self) -> torch.Tensor:
        """float32 [B, h, P + fed]: attention each key received."""
        return self.row_columns.sum(2)

    def visits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries that see each key, float32 [P + fed], and which keys are no padding and seen by one, bool [B, P + fed]."""
        asked = torch.bincount(self.queries, minlength=self.fed)
        image = asked.flip(0).cumsum(0).flip(0)  # a key is seen by the queries from its own on
        counts = torch.cat([image.new_full((self.prefix,), self.count), image]).to(self.squares.dtype)
        valid = torch.cat([self.prefix_seen, (image > 0).expand(len(self.prefix_seen), -1)], 1)
        return counts, valid

    def of_sequence(self, number: int) -> Accumulated:
        """One sequence of the batch."""
        return self._each(lambda value: value[number : number + 1])

    def plus(self, other: Accumulated) -> Accumulated:
        """Of the queries of both, which must differ."""
        queries = torch.cat([self.queries, other.queries])
        made: dict[str, Any] = {"queries": queries}
        for name in _SUMS:
            mine, theirs = getattr(self, name), getattr(other, name)
            made[name] = None if mine is None else mine + theirs
        if self.sorted_queries is not None and other.sorted_queries is not None:
            made["sorted_queries"] = torch.cat([self.sorted_queries, other.sorted_queries])
        return Accumulated(**{**self._fields(), **made})

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Accumulated:
        found = {n: None if getattr(self, n) is None else change(getattr(self, n)) for n in (*_SUMS, "prefix_seen")}
        return Accumulated(**{**self._fields(), **found})

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


_SUMS = ("row_columns", "squares", "offsets", "offsets_image", "entropy", "best", "best_running")
