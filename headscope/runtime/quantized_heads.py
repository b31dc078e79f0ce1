"""Buckets whose image tokens are written in 8 or 4 bits; prefix and anchors stay in the model's dtype.

They choose and count as the buckets of buckets.py do, and differ in where keys and values lie: `keys` and `values` hold prefix
and anchors, `slots` the image, of which at most BLOCK slots are read back at once while a query attends.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from headscope.policy import Bucket
from headscope.runtime.buckets import HeavyHeads, KeptHeads, WindowHeads, causal, lengths
from headscope.runtime.quantized import BLOCK, QuantizedSlots


class Packed(KeptHeads):
    """What both kinds share: storage, and attention to it block by block."""

    def allocate(self, bucket: Bucket, image_slots: int, like: torch.Tensor) -> None:
        """Front slots of prefix and anchors in the dtype of `like` [B, H, P, D], image slots in `bucket.bits`."""
        shape = (like.shape[0], len(bucket.heads), self.first, like.shape[3])
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.image_keys, self.image_values = (
            QuantizedSlots(like, len(bucket.heads), image_slots, bucket.bits) for _ in range(2)
        )

    @property
    def total(self) -> int:
        """Slots in all."""
        return self.first + self.image_keys.codes.shape[2]

    def tensors(self) -> list[torch.Tensor]:
        """Everything allocated."""
        return [*KeptHeads.tensors(self), *self.image_keys.tensors(), *self.image_values.tensors()]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        super().select(rows)
        for slots in (self.image_keys, self.image_values):
            slots.select(rows)

    def write(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """key, value [B, h, n, D] into slots `slot` and on."""
        plain = min(max(self.first - slot, 0), key.shape[2])
        self.fill_prefix(key[:, :, :plain], value[:, :, :plain], slot)
        if plain < key.shape[2]:
            self.image_keys.write(slot + plain - self.first, key[:, :, plain:])
            self.image_values.write(slot + plain - self.first, value[:, :, plain:])

    def attend(
        self,
        query: torch.Tensor,
        filled: int,
        mask: torch.Tensor | None,
        scale: float,
        chunk: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the first `filled` slots and, where one is given, to a chunk that is not written yet.

        Args:
            query: [B, h, Q, D].
            filled: slots in use.
            mask: added to the scores, [.., Q, slots].
            scale: of the scores.
            chunk: keys and values [B, h, T, D].

        Returns:
            output [B, h, Q, D], and the attention float32 [B, h, Q, slots]; both are computed in float32 at least.
        """
        front, work = min(filled, self.first), self.image_keys.work
        asked = (query * scale).to(work)
        blocks = [(start, min(start + BLOCK, filled - front)) for start in range(0, filled - front, BLOCK)]
        parts = [asked @ self.keys[:, :, :front].to(work).transpose(2, 3)]
        parts += [self.image_keys.scores(asked, *block) for block in blocks]
        if chunk is not None:
            parts.append(asked @ chunk[0].to(work).transpose(2, 3))
        scores = torch.cat(parts, -1)
        attention = torch.softmax(scores if mask is None else scores + mask, -1)
        out = attention[..., :front] @ self.values[:, :, :front].to(work)
        for start, stop in blocks:
            out += self.image_values.weighed(attention[..., front + start : front + stop], start, stop)
        if chunk is not None:
            out += attention[..., filled:] @ chunk[1].to(work)
        return out.to(query.dtype), attention.float()

    def _blocks(self, front: torch.Tensor, image: QuantizedSlots, filled: int) -> Iterator[torch.Tensor]:
        """The first `filled` slots: those in front as they are, the others read back a block at a time."""
        yield front[:, :, : min(filled, self.first)]
        for start in range(0, filled - self.first, BLOCK):
            yield image.read(start, min(start + BLOCK, filled - self.first))

    def _read_chunk(self, key: torch.Tensor, value: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens t and on as queries of the same chunk see them: anchors as they are."""
        plain = min(max(self.numbers.anchor - t, 0), key.shape[2])
        both = zip((key, value), (self.image_keys, self.image_values), strict=True)
        found = [torch.cat([part[:, :, :plain], slots.as_read(part[:, :, plain:])], 2) for part, slots in both]
        return found[0], found[1]


class PackedWindowHeads(Packed, WindowHeads):
    """`WindowHeads` in 8 or 4 bits."""

    def __init__(self, bucket: Bucket, start: int, prefix: int, like: torch.Tensor) -> None:
        self.ring = bucket.window + 1
        self.place(bucket, start, prefix)
        self.allocate(bucket, self.ring, like)

    def step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """See `WindowHeads.step`."""
        anchor = self.numbers.anchor
        self.write(self.prefix + t if t < anchor else self.first + (t - anchor) % self.ring, key, value)
        filled = self._filled(t + 1)
        return self.attend(query, filled, self._padding(bias, filled), scale)[0]

    def chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """See `WindowHeads.chunk`."""
        length, filled = key.shape[2], self._filled(t)
        mask = self._band(t, length, filled, query)
        padding = self._padding(bias, filled, length)
        if padding is not None:
            mask = mask + padding
        keys, values = self._read_chunk(key, value, t)
        if filled > self.first:
            out, _ = self.attend(query, filled, mask, scale, (keys, values))
        else:  # nothing has to be read back: as heads in 16 bits do it
            keys, values = torch.cat([self.keys[:, :, :filled], keys], 2), torch.cat([self.values[:, :, :filled], values], 2)
            out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
        self._commit(key, value, t)
        return out

    def looked_at(self, key: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `WindowHeads.looked_at`."""
        filled, length = self._filled(t), key.shape[2]
        tokens = torch.cat([torch.arange(-self.prefix, 0, device=key.device), self._held(t, filled, length)])
        keys = torch.cat([*self._blocks(self.keys, self.image_keys, filled), self._read_chunk(key, key, t)[0]], 2)
        return keys, tokens[None, None], self._seen(tokens, t, length)[None, None]

    def _put(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.write(slot, key, value)


class PackedHeavyHeads(Packed, HeavyHeads):
    """`HeavyHeads` in 8 or 4 bits; scores are added at every step, for no free slot could hold a query."""

    def __init__(self, bucket: Bucket, start: int, prefix: int, stride: int, like: torch.Tensor) -> None:
        self.kept, self.stride = bucket.window + bucket.heavy, stride
        self.place(bucket, start, prefix)
        self.allocate(bucket, self.kept + stride, like)
        self.begin_scores((like.shape[0], len(bucket.heads), self.kept + stride), like.device)

    def tensors(self) -> list[torch.Tensor]:
        """Everything allocated."""
        return [*Packed.tensors(self), self.scores, self.positions]

    def step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """See `HeavyHeads.step`."""
        return self.chunk(query, key, value, t, bias, scale)

    def chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """See `HeavyHeads.chunk`."""
        length = key.shape[2]
        start = self.prefix + t if t < self.numbers.anchor else self.first + self.live
        stop = start + length
        self.write(start, key, value)
        self._append(t, length, stop - max(start, self.first))
        mask = self._padding(bias, stop)
        if length > 1:
            hidden = causal(length, query.shape[2] // length, key.device)
            later = query.new_zeros(hidden.shape[0], stop)
            later[:, start:].masked_fill_(hidden, -torch.inf)
            mask = later if mask is None else mask + later
        out, attention = self.attend(query, stop, mask, scale)
        if self.live:
            received = attention[..., self.first :].sum(2)
            self.scores[:, :, : self.live].add_(received, alpha=length / query.shape[2])  # mean over the G query heads
        if (t + length) % self.stride == 0:
            self._choose(t + length - 1)
        return out

    def _lengths(self) -> torch.Tensor:
        blocks = range(0, self.live, BLOCK)
        read = (self.image_values.read(start, min(start + BLOCK, self.live)) for start in blocks)
        return torch.cat([lengths(block) for block in read], -1)

    def looked_at(self, key: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `HeavyHeads.looked_at`."""
        kept, tokens, seen = self._shown(key, t)
        keys = torch.cat([*self._blocks(self.keys, self.image_keys, kept), self._read_chunk(key, key, t)[0]], 2)
        return keys, tokens, seen

    def _move_newest(self, loser: torch.Tensor) -> None:
        for slots in (self.image_keys, self.image_values):
            slots.put(loser, self.kept)

    def _move_front(self, staying: torch.Tensor) -> None:
        for slots in (self.image_keys, self.image_values):
            slots.keep(staying)
