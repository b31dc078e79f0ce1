"""Attention seen step by step, while a model generates: with any cache, also one whose heads differ in length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import Group
from headscope.samples import Samples
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.accumulators import refuse_altered
from headscope.tracing.folding import Folding, by_row, whole
from headscope.tracing.selection import Selection


@dataclass(frozen=True)
class Live:
    """Images that are generated once more, so that a trace sees the attention of each step.

    Attributes:
        play: generates given images again, through whatever cache.
        cache: the name of that cache, written into the trace; traces of two caches are not joined.
    """

    play: Callable[[Samples], object]
    cache: str


class LiveAccumulator:
    """Adds up one layer's attention from the groups of each step; a token that a head has dropped gets none.

    The first call must bring the whole prefix (its length is read there) and the later ones one image token each, unless the
    prefix is told: then it may come in several calls, and image tokens several at a time. With a full cache the sums are those
    of a teacher-forced pass over the same tokens.

    Args:
        geometry: of the image.
        selection: which heads and queries.
        prefix: tokens before the image, padding included; None reads it off the first call.

    Example:
        A prefix of 3 and then tokens 0, 1: calls with query positions 0..2, 3, 4. The query of token 1 sees keys at positions
        0..4; a head whose window is 0 has only 0..2 and 4, and position 3 gets no attention from it.
    """

    def __init__(self, geometry: Geometry, selection: Selection, prefix: int | None = None) -> None:
        self.geometry, self.selection, self.told = geometry, selection, prefix
        self.prefix = -1
        self._fed = 0
        self._sums: list[Accumulated] = []
        self._folding: Folding | None = None
        self._shape = (0, 0)
        self._seen: torch.Tensor | None = None

    def step(self, groups: list[Group]) -> None:
        """What the layer's heads are about to attend to."""
        refuse_altered(groups[0])
        positions = groups[0].query_positions
        first, last = int(positions[0]), int(positions[-1])
        if self.prefix < 0:
            self.prefix = last + 1 if self.told is None else self.told
            self._folding = Folding(self.geometry, self.prefix, self.selection)
        elif first == 0:
            raise DataError("A second batch of images began while the first was traced live: trace one batch in one block.")
        elif self.told is None and last > first:
            raise DataError(
                f"Tokens {first} to {last} came in one call after the first, which may be a piece of the prompt; say how long "
                "the prompt is: watch_live(..., prefix=...)."
            )
        if first < self.prefix <= last:
            raise DataError(
                f"Tokens {first} to {last} in one call cross the end of the prompt at {self.prefix}; feed it alone."
            )
        if first < self.prefix:
            return
        asked = self.selection.queries(self.geometry, range(self.geometry.rows), self.geometry.tokens)
        tokens = positions.cpu() - self.prefix
        self._fed = max(self._fed, int(tokens[-1]) + 1)
        bands = self.selection.bands(self.geometry.rows)
        dense = None
        for number, band in enumerate(bands):
            inside = torch.isin(tokens, asked) & (tokens >= band.start * self.geometry.row_length)
            inside &= tokens < band.stop * self.geometry.row_length
            if bool(inside.any()):
                dense = self._dense(groups) if dense is None else dense
                self._add(number, tokens[inside], *(part[:, :, inside] for part in dense))

    def end(self) -> list[Accumulated]:
        """One `Accumulated` a band, as `Accumulator.add` gives them; empty if no image token was fed."""
        found = []
        for band, total in zip(self.selection.bands(self.geometry.rows), self._sums, strict=False):
            asked = self.selection.queries(self.geometry, band, self._fed)
            sorted_queries = asked[:: self.selection.sort_every] if self.selection.full else None
            assert self._seen is not None
            done = replace(total, fed=self._fed, queries=asked, prefix_seen=self._seen, sorted_queries=sorted_queries)
            found.append(whole(done, *self._shape))
        return found

    def _add(self, band: int, asked: torch.Tensor, weights: torch.Tensor, entropy: torch.Tensor, seen: torch.Tensor) -> None:
        assert self._folding is not None
        batch, heads = weights.shape[:2]
        prefix_seen = seen[..., : self.prefix].any(2).any(1)
        if not self._sums:
            self._shape = (batch, heads)
            self._seen = prefix_seen
            bands = self.selection.bands(self.geometry.rows)
            self._sums = [self._folding.empty(batch, heads, self.geometry.tokens, prefix_seen, part) for part in bands]
        stop = self.prefix + (int(asked[-1]) // self.geometry.row_length + 1) * self.geometry.row_length
        flat = weights[..., :stop].flatten(0, 1)
        parts = by_row(self.geometry, asked, weights.device)
        whole_batch = slice(0, batch * heads)
        self._folding.fold(self._sums[band], whole_batch, flat, asked, parts, entropy.flatten(0, 1), self._sums[:band])

    def _dense(self, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention [B, h, T, P + N], entropy over its largest possible value [B, h, T], and which keys were seen."""
        total = sum(len(group.heads) for group in groups)
        heads = range(total) if self.selection.heads is None else [h for h in self.selection.heads if h < total]
        rows: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for group in groups:
            if any(head in heads for head in group.heads):
                found = self._of_group(group)
                rows |= {head: (found[0][:, i], found[1][:, i], found[2][:, i]) for i, head in enumerate(group.heads)}
        stacked = [torch.stack([rows[head][part] for head in heads], 1) for part in range(3)]
        return stacked[0], stacked[1], stacked[2]

    def _of_group(self, group: Group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, heads, queries, _ = group.q.shape
        share = heads // group.k.shape[1]
        keys = group.k.float().repeat_interleave(share, 1)
        logits = torch.matmul(group.q.float() * group.scaling, keys.transpose(2, 3))
        if group.bias is not None:
            logits += group.bias.float()
        at = group.key_positions[:, :, None, :]
        shown = (at >= 0) & (at <= group.query_positions[None, None, :, None])
        if group.visible is not None:
            shown = shown & group.visible
        shown, at = (_per_head(part, share) for part in (shown, at))
        shown = shown.expand(batch, heads, queries, -1)
        at = at.expand(batch, heads, queries, -1).clamp(min=0).long()
        attention = logits.masked_fill(~shown, -torch.inf).softmax(-1)
        entropy = torch.special.entr(attention).sum(-1) / shown.sum(-1).clamp(min=2).log()
        length = self.prefix + self.geometry.tokens
        # Slots that the cache has room for and the image never reaches hold nothing that is shown.
        at = at.clamp(max=length - 1)
        dense = attention.new_zeros(batch, heads, queries, length).scatter_add_(3, at, attention)
        seen = torch.zeros_like(dense).scatter_add_(3, at, shown.float()) > 0
        return dense, entropy, seen


def _per_head(values: torch.Tensor, share: int) -> torch.Tensor:
    """[1 or B, 1 or hk, ...] by KV head -> by query head."""
    return values if values.shape[1] == 1 or share == 1 else values.repeat_interleave(share, 1)
