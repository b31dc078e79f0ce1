"""Folding: attention goes into running sums, a row of the image at a time, wherever it was computed.

The attention of one row of queries, seen as [column, key row, key column], is a slice of one running sum, so that mass by
2-D offset costs one pass over the attention and no index of every pair. While sums run, sequence and head are one dimension;
`whole` takes them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.geometry import Geometry
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.selection import Selection

# A row of the image, where its queries lie among those asked, and their columns.
Part = tuple[int, slice, slice | torch.Tensor]


def by_row(geometry: Geometry, asked: torch.Tensor, device: torch.device) -> list[Part]:
    """The rows that hold the image tokens `asked` (ascending)."""
    found: list[Part] = []
    rows, counts = torch.unique_consecutive(asked // geometry.row_length, return_counts=True)
    first = 0
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        columns = asked[first : first + count] % geometry.row_length
        start, last = int(columns[0]), int(columns[-1])
        at = slice(start, last + 1) if count == last - start + 1 else columns.to(device)
        found.append((row, slice(first, first + count), at))
        first += count
    return found


@dataclass(frozen=True)
class Folding:
    """How the attention of one layer goes into its sums.

    Attributes:
        geometry: of the image.
        prefix: positions before the image, padding included.
        selection: which queries are asked, and whether they are sorted.
    """

    geometry: Geometry
    prefix: int
    selection: Selection

    def empty(self, batch: int, heads: int, fed: int, seen: torch.Tensor, band: range) -> Accumulated:
        """Sums of nothing yet, for the queries of one band of rows.

        Args:
            batch: sequences.
            heads: query heads that are traced.
            fed: image tokens that are fed.
            seen: bool [B, P], prefix positions that are no padding.
            band: rows of the image.
        """
        g, device = self.geometry, seen.device
        both, keys = batch * heads, self.prefix + g.tokens
        asked = self.selection.queries(g, band, fed)
        sorted_queries = asked[:: self.selection.sort_every]

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(both, *shape, device=device)

        return Accumulated(
            geometry=g,
            prefix=self.prefix,
            fed=fed,
            queries=asked.to(device),
            prefix_seen=seen,
            row_columns=zeros(g.rows, keys),
            squares=zeros(keys),
            offsets=zeros(g.row_length, g.rows, g.row_length),  # [query column, shift of rows, key column] until the end
            offsets_image=zeros(g.row_length, g.rows, g.row_length),
            entropy=zeros(g.rows),
            best=zeros(g.tokens) if self.selection.full else None,
            best_running=zeros(g.tokens) if self.selection.full else None,
            sorted_queries=sorted_queries.to(device) if self.selection.full else None,
        )

    def fold(
        self,
        total: Accumulated,
        part: slice,
        weights: torch.Tensor,
        asked: torch.Tensor,
        parts: list[Part],
        entropy: torch.Tensor,
        earlier: list[Accumulated],
        spare: torch.Tensor | None = None,
    ) -> None:
        """Add attention [b, q, K] of the queries `asked`, K being the prefix and whole rows of keys.

        Args:
            total: sums of the band that these queries belong to.
            part: sequences and heads that the attention is of, counted as one dimension.
            weights: the attention.
            asked: image tokens, ascending.
            parts: of `by_row`.
            entropy: [b, q], over its largest possible value.
            earlier: sums of the bands before, in which scores began to run.
            spare: memory of the attention's shape to work in.
        """
        g, prefix, stop = self.geometry, self.prefix, weights.shape[-1]
        if self.selection.full:
            self._sort(total, part, weights, asked, earlier)
        scale = 1 / weights[..., prefix:].sum(-1).clamp_(min=1e-12)
        for row, mine, columns in parts:
            here = weights[:, mine]
            end = prefix + (row + 1) * g.row_length
            total.row_columns[part, row, :stop] += here.sum(1)
            total.entropy[part, row] += entropy[:, mine].sum(1)
            image = here[..., prefix:end].unflatten(2, (row + 1, g.row_length))
            shift = slice(g.rows - 1 - row, g.rows)
            scaled = scale[:, mine, None, None]
            if isinstance(columns, slice):
                total.offsets[part, columns, shift].add_(image)
                total.offsets_image[part, columns, shift].addcmul_(image, scaled)
            else:
                total.offsets[part, columns, shift] += image
                total.offsets_image[part, columns, shift] += image * scaled
        square = torch.mul(weights, weights, out=spare) if spare is not None else weights.square()
        total.squares[part, :stop] += square.sum(1)

    def _sort(
        self, total: Accumulated, part: slice, weights: torch.Tensor, asked: torch.Tensor, earlier: list[Accumulated]
    ) -> None:
        """Coverage by the m best older image tokens, by the query's own attention and by the score that ran up before it."""
        assert total.best is not None
        assert total.best_running is not None
        assert total.sorted_queries is not None
        wanted = set(total.sorted_queries.tolist())
        before = [band.row_columns[part, :, self.prefix :].sum(1) for band in (*earlier, total)]
        running = torch.stack(before).sum(0)  # [b, N]: rows before this block
        for number, t in enumerate(asked.tolist()):
            if t in wanted and t > 0:
                older = weights[:, number, self.prefix : self.prefix + t]
                total.best[part, :t] += older.sort(-1, descending=True).values.cumsum(-1)
                # Ties go to the newer token, as in a policy: a stable sort of the tokens from new to old.
                order = running[:, :t].flip(-1).argsort(dim=-1, descending=True, stable=True)
                total.best_running[part, :t] += older.flip(-1).gather(-1, order).cumsum(-1)
                rest = older.sum(-1, keepdim=True)
                total.best[part, t:] += rest
                total.best_running[part, t:] += rest
            running[:, : weights.shape[-1] - self.prefix] += weights[:, number, self.prefix :]


def whole(total: Accumulated, batch: int, heads: int) -> Accumulated:
    """Sequence and head apart again, keys that were never fed cut off, and shifts of columns for pairs of columns."""
    geometry, keys = total.geometry, total.prefix + total.fed

    def offsets(pairs: torch.Tensor) -> torch.Tensor:
        """[b, query column, shift, key column] -> [B, h, rows up, columns right]."""
        length = geometry.row_length
        column = torch.arange(length, device=pairs.device)
        right = (column[None] - column[:, None] + length - 1).flatten()
        flat = pairs.flip(2).transpose(2, 3).flatten(1, 2)  # [b, column pairs, rows up]
        made = pairs.new_zeros(len(pairs), 2 * length - 1, geometry.rows).index_add_(1, right, flat)
        return made.transpose(1, 2).unflatten(0, (batch, heads))

    def apart(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.unflatten(0, (batch, heads))

    return Accumulated(
        geometry=geometry,
        prefix=total.prefix,
        fed=total.fed,
        queries=total.queries,
        prefix_seen=total.prefix_seen,
        row_columns=total.row_columns[..., :keys].unflatten(0, (batch, heads)),
        squares=total.squares[..., :keys].unflatten(0, (batch, heads)),
        offsets=offsets(total.offsets),
        offsets_image=offsets(total.offsets_image),
        entropy=total.entropy.unflatten(0, (batch, heads)),
        best=apart(total.best),
        best_running=apart(total.best_running),
        sorted_queries=total.sorted_queries,
    )
