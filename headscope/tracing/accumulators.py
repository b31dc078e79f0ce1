"""The few things that touch attention. Everything else is a function of what they add up, so no map is ever stored.

Queries are the image tokens that the model was fed: t = 0 .. N - 2 when a recorded image is replayed, for the last token
is never fed. Keys are all tokens: P prefix positions, then those. The work goes by rows of the image; see folding.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import Group
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.folding import Folding, Part, by_row, whole
from headscope.tracing.selection import Selection

# Query tokens of one block: 48 make the product of queries and keys 1.5 times faster than 24; more gain nothing.
TOGETHER = 48
# Elements of one block of attention; 1 MiB in float32, so that the passes over it stay in the cache of a core.
BLOCK = 2**18
_HIDDEN = -30_000.0  # a logit whose weight is 0 in float32 and whose product with it is 0 too, as that of -inf is not


@dataclass(frozen=True)
class _Block:
    """Queries that are asked together: `asked` on the CPU, `places` on the device, `some` an index to them; keys up to `stop`,
    of which `later` bool [q, keys of these rows] must not be seen."""

    stop: int
    asked: torch.Tensor
    some: slice | torch.Tensor
    later: torch.Tensor
    places: torch.Tensor
    parts: list[Part]


class Accumulator:
    """Adds up one layer's attention, for sequences with one and the same prefix length.

    Args:
        geometry: of the image.
        prefix: positions before the image, padding included.
        selection: which heads and queries, everything of the default set unless given.

    One layer after the other may be added; each `add` starts anew.

    Args:
        geometry: of the image.
        prefix: positions before the image, padding included.
        selection: which heads and queries, all unless given.
    """

    def __init__(self, geometry: Geometry, prefix: int, selection: Selection | None = None) -> None:
        self.geometry, self.prefix = geometry, prefix
        self.selection = selection or Selection()
        self._folding = Folding(geometry, prefix, self.selection)
        self._rows_together = max(1, round(TOGETHER / geometry.row_length))
        self._buffers: dict[str, torch.Tensor] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._plans: dict[tuple[int, int, torch.device], list[_Block]] = {}
        self._checked: tuple[int, tuple[int, ...]] | None = None

    def add(self, group: Group, output: torch.Tensor | None = None) -> list[Accumulated]:
        """All queries of a teacher-forced pass.

        Args:
            group: all heads of the layer; q [B, h, P + fed, D] has every token, and so has k [B, hk, P + fed, D].
            output: [B, fed, h, D] to fill with what the image queries attend to in group.v; see `sees_all`.

        Returns:
            One `Accumulated` for each band of rows that the selection names.
        """
        refuse_altered(group)
        batch, heads, length, _ = group.q.shape
        fed = length - self.prefix
        seen = _prefix_seen(group, self.prefix)
        self._check_mask(group, seen)
        chosen = self._heads(heads)
        # Sequence and head are one dimension from here on; keys lie as [D, K], which is the faster side of the product, and
        # in whole rows, so that every row has one shape.
        share, size, most = heads // group.k.shape[1], group.k.shape[3], self.prefix + self.geometry.tokens
        keys = self._zeros("keys", (batch, len(chosen), size, most), group.q.device)
        picked = _picked(group.k, [head // share for head in chosen]).transpose(2, 3)
        torch.mul(picked.float(), group.scaling, out=keys[..., :length])
        keys = keys.flatten(0, 1)
        values = None if output is None or group.v is None else self._values(group.v, share)
        queries = _picked(group.q[:, :, self.prefix :], chosen).float().flatten(0, 1)
        real = torch.cat([seen, seen.new_ones(batch, self.geometry.tokens)], 1)
        bias = None if group.bias is None else self._bias(group.bias, chosen)
        sums = [self._folding.empty(batch, len(chosen), fed, seen, band) for band in self.selection.bands(self.geometry.rows)]
        for number, (band, total) in enumerate(zip(self.selection.bands(self.geometry.rows), sums, strict=True)):
            for block in self._blocks(band, fed, queries.device):
                found = self._block(total, queries, keys, real, block, len(chosen), sums[:number], values, bias)
                if output is not None and found is not None:
                    output[:, block.some] = found.unflatten(0, (batch, heads)).transpose(1, 2)
        return [whole(total, batch, len(chosen)) for total in sums]

    def sees_all(self, group: Group) -> bool:
        """Whether every image query of every head is asked, so that `add` can yield the layer's output too."""
        return self.selection.everything and group.v is not None

    def _values(self, values: torch.Tensor, share: int) -> torch.Tensor:
        """[B, hk, S, D] -> float32 [B * h, P + N, D], zero where nothing was fed or the prefix is padding."""
        batch, heads, length, size = values.shape
        made = self._zeros("values", (batch, heads, share, self.prefix + self.geometry.tokens, size), values.device)
        made[:, :, :, :length] = values[:, :, None]
        return made.flatten(0, 2)

    def _bias(self, bias: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        """[1 or B, 1 or H, P + fed, P + fed] -> float32 [1 or B, 1 or h, fed, P + N] of the image queries of chosen heads."""
        mine = bias[:, :, self.prefix :] if bias.shape[1] == 1 else bias[:, chosen, self.prefix :]
        return functional.pad(mine.float(), (0, self.prefix + self.geometry.tokens - bias.shape[3]))

    def _check_mask(self, group: Group, seen: torch.Tensor) -> None:
        """Image queries must see the prefix and all image tokens before them; the same mask is looked at once."""
        visible = group.visible
        if visible is None or (key := (visible.data_ptr(), tuple(visible.shape))) == self._checked:
            return
        length = group.q.shape[2]
        lower = torch.ones(length - self.prefix, length - self.prefix, dtype=torch.bool, device=visible.device).tril()
        mine = visible[:, :, self.prefix :]
        plain = bool((mine[..., self.prefix :] == lower).all()) and bool(
            (mine[..., : self.prefix] == seen[:, None, None]).all()
        )
        if not plain:
            raise DataError(
                "A layer hides tokens that come before the query (a sliding window, say); the parallel trace expects plain "
                "causal attention: trace it live."
            )
        self._checked = key

    def _heads(self, heads: int) -> list[int]:
        return list(range(heads)) if self.selection.heads is None else [h for h in self.selection.heads if h < heads]

    def _blocks(self, band: range, fed: int, device: torch.device) -> list[_Block]:
        """The blocks of a band; they are the same for every layer."""
        key = (band.start, fed, device)
        if key not in self._plans:
            plan = self._plans[key] = []
            length = self.geometry.row_length
            for row in range(band.start, band.stop, self._rows_together):
                rows = range(row, min(row + self._rows_together, band.stop))
                asked = self.selection.queries(self.geometry, rows, fed)
                if not len(asked):
                    continue
                later = torch.arange(rows.start * length, rows.stop * length)[None] > asked[:, None]
                contiguous = len(asked) == int(asked[-1] - asked[0]) + 1
                some = slice(int(asked[0]), int(asked[-1]) + 1) if contiguous else asked.to(device)
                parts = by_row(self.geometry, asked, device)
                plan.append(_Block(rows.stop * length, asked, some, later.to(device), asked.to(device), parts))
        return self._plans[key]

    def _block(
        self,
        total: Accumulated,
        queries: torch.Tensor,
        keys: torch.Tensor,
        real: torch.Tensor,
        block: _Block,
        heads: int,
        earlier: list[Accumulated],
        values: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Attention of one block's queries, in as many heads at a time as a block of memory holds.

        Args:
            bias: of `_bias`, added to the logits.

        Returns:
            float32 [B * h, q, D], what they attend to in `values` [B * h, P + N, D], if those are given.
        """
        stop, count = self.prefix + block.stop, len(block.asked)
        together = max(1, BLOCK // (count * stop))
        device = queries.device
        later, some = block.later, block.some
        padded = ~real[:, : self.prefix]
        any_padded = bool(padded.any())
        output = None if values is None else values.new_empty(len(queries), count, values.shape[2])
        visible = (real[:, : self.prefix].sum(1)[:, None] + block.places + 1).clamp(min=2).log()  # [B, q]
        for first in range(0, len(queries), together):
            part = slice(first, min(first + together, len(queries)))
            size = part.stop - part.start
            logits = self._buffer("logits", (size, count, stop), device)
            weights = self._buffer("weights", (size, count, stop), device)
            torch.bmm(queries[part, some], keys[part, :, :stop], out=logits)
            if bias is not None:
                every = torch.arange(part.start, part.stop, device=device)
                rows = (every // heads).clamp(max=len(bias) - 1), (every % heads).clamp(max=bias.shape[1] - 1)
                logits += bias[(*rows, some)][..., :stop] if isinstance(some, slice) else bias[rows][:, some, :stop]
            logits[..., stop - later.shape[1] :].masked_fill_(later, _HIDDEN)
            sequence = torch.arange(part.start, part.stop, device=device) // heads
            if any_padded:
                logits[..., : self.prefix].masked_fill_(padded[sequence][:, None], _HIDDEN)
            torch.softmax(logits, -1, out=weights)
            if values is not None and output is not None:
                torch.bmm(weights, values[part, :stop], out=output[part])
            partition = self._partition(logits, weights, block)
            entropy = (partition - logits.mul_(weights).sum(-1)).div_(visible[sequence]).clamp_(min=0)
            self._folding.fold(total, part, weights, block.asked, block.parts, entropy, earlier, spare=logits)
        return output

    def _partition(self, logits: torch.Tensor, weights: torch.Tensor, block: _Block) -> torch.Tensor:
        """log Z [b, q], of which H = log Z - sum A l: any logit less the logarithm of its weight, the query's own where that
        is no underflow (two passes over the block less), else the largest."""
        own = (self.prefix + block.places)[None, :, None].expand(len(logits), -1, 1)
        weight = weights.gather(2, own).squeeze(2)
        if bool((weight > 1e-30).all()):
            return logits.gather(2, own).squeeze(2) - weight.log_()
        return logits.amax(-1) - weights.amax(-1).log_()

    def _zeros(self, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Memory that is used for every layer; what the first one left zero, the others do."""
        found = self._kept.get(name)
        if found is None or found.shape != shape or found.device != device:
            found = self._kept[name] = torch.zeros(shape, device=device)
        return found

    def _buffer(self, name: str, shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """A block of memory that is used again and again."""
        size = shape[0] * shape[1] * shape[2]
        found = self._buffers.get(name)
        if found is None or found.numel() < size or found.device != device:
            found = self._buffers[name] = torch.empty(size, device=device)
        return found[:size].view(shape)


def refuse_altered(group: Group) -> None:
    """Raise a DataError for attention that queries, keys and masks do not tell."""
    if group.altered is not None:
        raise DataError(
            f"The attention of a layer has {group.altered}, which its statistics would leave out: it can't be traced."
        )


def _picked(values: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """values [B, h, ...] of some heads; not copied where those are all."""
    return values if heads == list(range(values.shape[1])) else values[:, heads]


def _prefix_seen(group: Group, prefix: int) -> torch.Tensor:
    """bool [B, P]: what the last query may see of the prefix."""
    batch = group.q.shape[0]
    if group.visible is None:
        return torch.ones(batch, prefix, dtype=torch.bool, device=group.q.device)
    return group.visible[:, 0, -1, :prefix].expand(batch, prefix)
