"""Buckets: heads of one layer that remember alike, in one dense K and one dense V.

Slots of a bucket, from the left:

    [ prefix P | anchors A | image ]

P is the whole prompt, or its first and its last token where the heads drop the rest (prompt_ends.py).
In a window bucket `image` is a ring of `window + 1` slots; in a heavy bucket it is `window + heavy` kept slots and then a
buffer of one stride. Slots fill from the left without holes, so what is attended to is always one slice. Which slot holds
what does not matter to attention, because rotary embedding is applied before.

Long, because both kinds answer the same calls, and are compared side by side.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional

from headscope.policy import RECEIVED, SCORES, Bucket, Candidates
from headscope.runtime.prompt_ends import PromptEnds


class KeptHeads:
    """What both kinds of bucket share: storage, prefix, anchors.

    Args:
        bucket: the heads and their numbers.
        start: the first head's place in the layer, once its heads are sorted by bucket.
        prefix: slots of the prompt, P.
        image_slots: slots after prefix and anchors.
        like: keys [B, H, P, D] that give batch, head size, dtype and device.
    """

    def __init__(self, bucket: Bucket, start: int, prefix: int, image_slots: int, like: torch.Tensor) -> None:
        self.place(bucket, start, prefix)
        shape = (like.shape[0], len(bucket.heads), self.first + image_slots, like.shape[3])
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    def place(self, bucket: Bucket, start: int, prefix: int) -> None:
        """Which heads these are, and where the image area begins."""
        self.numbers = bucket
        self.start, self.stop = start, start + len(bucket.heads)
        self.prefix = prefix
        self.first = prefix + bucket.anchor
        self.prompt: tuple[torch.Tensor, torch.Tensor] | None = None  # what came of one that is to be dropped

    @property
    def total(self) -> int:
        """Slots in all."""
        return self.keys.shape[2]

    def tensors(self) -> list[torch.Tensor]:
        """Everything allocated."""
        return [self.keys, self.values, *(self.prompt or ())]

    def read_prompt(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keys and values [B, h, T, D] of the next T tokens of a prompt that is to be dropped."""
        if self.prompt is not None:
            keys, values = torch.cat([self.prompt[0], keys], 2), torch.cat([self.prompt[1], values], 2)
        self.prompt = keys, values

    def drop_prompt(self, ends: PromptEnds) -> None:
        """Of the prompt that was read only its ends go into the slots of the prefix."""
        assert self.prompt is not None
        keys, values = self.prompt
        self.fill_prefix(ends.of_prompt(keys), ends.of_prompt(values))
        self.prompt = None

    def prefix_so_far(self, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, h, stop, D] of a prompt that is not yet read to its end."""
        return self.prompt or (self.keys[:, :, :stop], self.values[:, :, :stop])

    def fill_prefix(self, keys: torch.Tensor, values: torch.Tensor, start: int = 0) -> None:
        """keys, values [B, h, T, D] into slots `start` and on: of prefix tokens, by their numbers."""
        self.keys[:, :, start : start + keys.shape[2]] = keys
        self.values[:, :, start : start + keys.shape[2]] = values

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if self.prompt is not None:
            self.prompt = self.prompt[0].index_select(0, rows), self.prompt[1].index_select(0, rows)

    def _padding(self, bias: torch.Tensor | None, slots: int, more: int = 0) -> torch.Tensor | None:
        """The layer's bias [B, 1, 1, all slots], 0 behind the prefix -> [B, 1, 1, slots + more]."""
        if bias is None or slots + more <= bias.shape[3]:
            return None if bias is None else bias[..., : slots + more]
        return functional.pad(bias, (0, slots + more - bias.shape[3]))


def lengths(values: torch.Tensor) -> torch.Tensor:
    """L2 norms of values [..., D], in float32 at least -> [...]."""
    return torch.linalg.vector_norm(values, dim=-1, dtype=torch.promote_types(values.dtype, torch.float32))


class WindowHeads(KeptHeads):
    """Heads that see the prefix, the anchors, `window` tokens before the query, and the query.

    Example: window 3, no anchors, ring of 4 slots. Token 5 is written to slot 5 % 4 = 1, over token 1, which no query from 5
    on sees; the ring then holds tokens 4 5 2 3.
    """

    def __init__(self, bucket: Bucket, start: int, prefix: int, like: torch.Tensor) -> None:
        self.ring = bucket.window + 1
        super().__init__(bucket, start, prefix, self.ring, like)

    def step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """One image token t. query [B, h, G, D], key and value [B, h, 1, D] -> [B, h, G, D]."""
        anchor = self.numbers.anchor
        slot = self.prefix + t if t < anchor else self.first + (t - anchor) % self.ring
        self.keys[:, :, slot : slot + 1] = key
        self.values[:, :, slot : slot + 1] = value
        filled = self._filled(t + 1)
        mask = self._padding(bias, filled)
        return functional.scaled_dot_product_attention(
            query, self.keys[:, :, :filled], self.values[:, :, :filled], attn_mask=mask, scale=scale
        )

    def chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Image tokens t .. t + T - 1. query [B, h, G * T, D], key and value [B, h, T, D] -> [B, h, G * T, D].

        Attends to [slots so far | chunk] before anything is overwritten.
        """
        length = key.shape[2]
        filled = self._filled(t)
        keys = torch.cat([self.keys[:, :, :filled], key], 2)
        values = torch.cat([self.values[:, :, :filled], value], 2)
        mask = self._band(t, length, filled, query)
        padding = self._padding(bias, filled, length)
        if padding is not None:
            mask = mask + padding
        out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
        self._commit(key, value, t)
        return out

    def looked_at(self, key: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What tokens t .. t + T - 1 will attend to: keys [B, h, S, D], their image tokens int64 [1, 1, S] (prefix: -P .. -1),
        and bool [1, 1, T, S], which of them each query sees."""
        filled, length = self._filled(t), key.shape[2]
        tokens = torch.cat([torch.arange(-self.prefix, 0, device=key.device), self._held(t, filled, length)])
        return torch.cat([self.keys[:, :, :filled], key], 2), tokens[None, None], self._seen(tokens, t, length)[None, None]

    def _filled(self, seen: int) -> int:
        """Slots in use after `seen` image tokens."""
        anchor = self.numbers.anchor
        return self.prefix + min(seen, anchor) + min(max(seen - anchor, 0), self.ring)

    def _band(self, t: int, length: int, filled: int, query: torch.Tensor) -> torch.Tensor:
        """[G * T, filled + T]: 0 where query t + i sees the key, -inf elsewhere."""
        groups = query.shape[2] // length
        newest = t - 1 - self.numbers.anchor
        if newest < self.ring - 1:  # the ring is not yet full
            seen = self._seen(self._held(t, filled, length), t, length)
            band = torch.zeros(length, filled + length, dtype=query.dtype, device=query.device)
            band[:, self.prefix :].masked_fill_(~seen, -torch.inf)
        else:
            by_age, in_chunk = _band_parts(self.ring, length, query.dtype, query.device)
            begin = self.ring - (newest + 1) % self.ring
            band = torch.cat([by_age.new_zeros(length, self.first), by_age[:, begin : begin + self.ring], in_chunk], 1)
        return band if groups == 1 else band.repeat(groups, 1)

    def _held(self, t: int, filled: int, length: int) -> torch.Tensor:
        """Image tokens in the slots behind the prefix, then those of the chunk t .. t + length - 1."""
        device, anchor = self.keys.device, self.numbers.anchor
        ring = torch.arange(filled - self.prefix - min(t, anchor), device=device)
        newest = t - 1 - anchor  # of the tokens in the ring, counted from the first after the anchors
        held = newest - (newest - ring) % self.ring + anchor
        return torch.cat([torch.arange(min(t, anchor), device=device), held, torch.arange(t, t + length, device=device)])

    def _seen(self, tokens: torch.Tensor, t: int, length: int) -> torch.Tensor:
        """bool [length, tokens]: the prefix and the anchors always, others within the window, none after the query."""
        now = torch.arange(t, t + length, device=tokens.device)[:, None]
        return (tokens <= now) & ((tokens >= now - self.numbers.window) | (tokens < self.numbers.anchor))

    def _commit(self, key: torch.Tensor, value: torch.Tensor, t: int) -> None:
        length = key.shape[2]
        done = min(max(self.numbers.anchor - t, 0), length)  # tokens of the chunk that are anchors
        if done:
            self._put(self.prefix + t, key[:, :, :done], value[:, :, :done])
        start = max(done, length - self.ring)  # what came before it is overwritten within the chunk
        while start < length:
            slot = (t + start - self.numbers.anchor) % self.ring
            count = min(length - start, self.ring - slot)
            self._put(self.first + slot, key[:, :, start : start + count], value[:, :, start : start + count])
            start += count

    def _put(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.fill_prefix(key, value, slot)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _band_parts(ring: int, length: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of a chunk on a full ring: over the ring's tokens from the oldest to the newest, twice [T, 2 * ring], and over
    the chunk [T, T].

    Example: ring 4 (window 3), the next slot is 1. Slots 1 2 3 0 hold the tokens from the oldest to the newest, so the mask
    by slot is columns 3 to 6 of the first. Query 0 sees all but the oldest, query 1 all but the two oldest.
    """
    query, key = torch.arange(length)[:, None], torch.arange(length)
    in_chunk = (key <= query) & (key >= query - (ring - 1))
    by_age = (torch.arange(ring) > query).repeat(1, 2)

    def mask(seen: torch.Tensor) -> torch.Tensor:
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)

    return mask(by_age), mask(in_chunk)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def causal(length: int, groups: int, device: torch.device) -> torch.Tensor:
    """bool [G * T, T]: the tokens of a chunk that a query may not see."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu_(1).repeat(groups, 1)


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _later(count: int, groups: int, device: torch.device) -> torch.Tensor:
    """bool [count * G, count]: of `count` tokens, those that came after the token that asks.

    Queries stand as they were left, backwards: tokens ... 4 2 0 in the keys, then ... 5 3 1 in the values.
    """
    askers = [*range(0, count, 2)][::-1] + [*range(1, count, 2)][::-1]
    return (torch.arange(count) > torch.tensor(askers)[:, None]).repeat_interleave(groups, 0).to(device)


class HeavyHeads(KeptHeads):
    """Heads that also keep the `heavy` tokens with the best score, chosen at every stride end.

    Tokens are appended at slot `live`; at a stride end, if more than `window + heavy` are live, the newest `window` and the
    best `heavy` others stay and move to the front, in order of age.

    Example: window 1, heavy 1, stride 2, tokens 0 1 2 3 live with scores .1 .9 .2 .0. Token 3 is in the window, token 1 is the
    best other one. Slots 0 1 | 2 3 hold 0 1 | 2 3 before, 1 3 after.

    Scores are needed at stride ends only, and between two of them no slot changes. So a step that brings one token computes its
    output with the fused kernel, which reveals no attention, and leaves its query in slots that later tokens of the stride
    will take: from the end of the keys, then of the values, in turn. `flush_scores` adds the attention of all these queries
    at once, before their slots are needed: for a stride of 24, a few times in place of 24.
    """

    def __init__(self, bucket: Bucket, start: int, prefix: int, stride: int, like: torch.Tensor) -> None:
        self.kept = bucket.window + bucket.heavy
        self.stride = stride
        super().__init__(bucket, start, prefix, self.kept + stride, like)
        self.begin_scores((*self.keys.shape[:2], self.kept + stride), like.device)

    def begin_scores(self, shape: tuple[int, int, int], device: torch.device) -> None:
        """No score yet: shape is [B, h, slots of the image area]."""
        self.scores = torch.zeros(shape, dtype=torch.float32, device=device)
        self.positions = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.live = 0
        self._deferred = 0  # queries of the newest tokens that the scores still lack, by tokens
        self._terms: tuple[torch.Tensor | None, float, int] = (None, 1.0, 1)  # padding, scale and query heads of those
        self._weighed: tuple[int, torch.Tensor] | None = None  # of the row that was asked for last, see `_weights`

    def tensors(self) -> list[torch.Tensor]:
        """Everything allocated."""
        return [*super().tensors(), self.scores, self.positions]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        super().select(rows)
        self.scores, self.positions = self.scores.index_select(0, rows), self.positions.index_select(0, rows)
        bias, scale, groups = self._terms
        if bias is not None and len(bias) > 1:
            self._terms = (bias.index_select(0, rows), scale, groups)

    def step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """As `WindowHeads.step`; also adds up scores, and chooses where t ends a stride."""
        anchor, groups, total = self.numbers.anchor, query.shape[2], self.keys.shape[2]
        start = self.prefix + t if t < anchor else self.first + self.live
        if self._deferred and start >= total - (self._deferred + 1) // 2 * groups:
            self.flush_scores()
        stop = start + 1
        self.keys[:, :, start:stop] = key
        self.values[:, :, start:stop] = value
        if start >= self.first:
            self.positions[:, :, self.live] = t
            self.live += 1
        mask = self._padding(bias, stop)
        out = functional.scaled_dot_product_attention(
            query, self.keys[:, :, :stop], self.values[:, :, :stop], attn_mask=mask, scale=scale
        )
        if self.live:
            self._defer(query, stop, bias, scale)
        if (t + 1) % self.stride == 0:
            self.flush_scores()
            self._choose(t)
        return out

    def _defer(self, query: torch.Tensor, stop: int, bias: torch.Tensor | None, scale: float) -> None:
        """Leave the newest token's query [B, h, G, D] in free slots; where there are none, add its attention now."""
        groups, total = query.shape[2], self.keys.shape[2]
        place = total - (self._deferred // 2 + 1) * groups
        if place < stop and self._deferred:  # flushed as of the token before, the newest is in no stored query's past
            self.flush_scores(newer=1)
            place = total - groups
        self._terms = (bias, scale, groups)
        if place < stop:
            self._add(query, 1, self.live)
            return
        stored = self.values if self._deferred % 2 else self.keys
        stored[:, :, place : place + groups] = query
        self._deferred += 1

    def flush_scores(self, newer: int = 0) -> None:
        """Add to the scores what the queries left in free slots attended to; the `newer` newest tokens came after them."""
        count, groups = self._deferred, self._terms[2]
        if not count:
            return
        in_values = count // 2 * groups
        query = self.keys[:, :, -((count + 1) // 2 * groups) :]
        if in_values:
            query = torch.cat([query, self.values[:, :, -in_values:]], 2)
        self._deferred = 0
        self._add(query, count, self.live - newer)

    def _add(self, query: torch.Tensor, count: int, live: int) -> None:
        """Scores from the queries [B, h, count * G, D] of the newest `count` of `live` tokens, in the order of `_later`."""
        bias, scale, groups = self._terms
        stop = self.first + live
        attention = torch.matmul(query * scale, self.keys[:, :, :stop].transpose(2, 3))
        mask = self._padding(bias, stop)
        if mask is not None:
            attention += mask
        if count > 1:
            attention[..., stop - count :].masked_fill_(_later(count, groups, query.device), -torch.inf)
        received = torch.softmax(attention, -1, dtype=torch.float32)[..., self.first :].sum(2)
        self.scores[:, :, :live].add_(received, alpha=1 / groups)  # mean over the G query heads

    def chunk(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, t: int, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """As `WindowHeads.chunk`; the chunk must not cross a stride end."""
        self.flush_scores()
        length, anchor = key.shape[2], self.numbers.anchor
        start = self.prefix + t if t < anchor else self.first + self.live
        stop = start + length
        self.keys[:, :, start:stop] = key
        self.values[:, :, start:stop] = value
        self._append(t, length, stop - max(start, self.first))
        attention = torch.matmul(query * scale, self.keys[:, :, :stop].transpose(2, 3))
        mask = self._padding(bias, stop)
        if mask is not None:
            attention += mask
        if length > 1:
            attention[..., start:].masked_fill_(causal(length, query.shape[2] // length, key.device), -torch.inf)
        attention = torch.softmax(attention, -1, dtype=torch.float32)
        if self.live:
            received = attention[..., self.first :].sum(2)
            self.scores[:, :, : self.live].add_(received, alpha=length / query.shape[2])  # mean over the G query heads
        out = torch.matmul(attention.to(query.dtype), self.values[:, :, :stop])
        if (t + length) % self.stride == 0:
            self._choose(t + length - 1)
        return out

    def _append(self, t: int, length: int, added: int) -> None:
        """Of tokens t .. t + length - 1 the last `added` are live now."""
        if added > 0:
            ends = t + length - added, t + length
            self.positions[:, :, self.live : self.live + added] = torch.arange(
                *ends, dtype=torch.int32, device=self.positions.device
            )
            self.live += added

    def looked_at(self, key: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `WindowHeads.looked_at`, tokens int64 [B, h, S]: each sequence and head has chosen for itself."""
        kept, tokens, seen = self._shown(key, t)
        return torch.cat([self.keys[:, :, :kept], key], 2), tokens, seen

    def _shown(self, key: torch.Tensor, t: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Slots in use, and tokens and visibility of `looked_at`."""
        batch, heads, length = key.shape[:3]
        kept = self.first + self.live if self.live else self.prefix + min(t, self.numbers.anchor)
        before = torch.arange(-self.prefix, kept - self.prefix - self.live, device=key.device).expand(batch, heads, -1)
        now = torch.arange(t, t + length, device=key.device)
        live = self.positions[:, :, : self.live].long()
        tokens = torch.cat([before, live, now.expand(batch, heads, -1)], -1)
        return kept, tokens, tokens[:, :, None] <= now[:, None]

    def _choose(self, t: int) -> None:
        """The stride end after token t."""
        if self.live > self.kept:
            if self.stride == 1:
                self._drop_one(t)
            else:
                self._drop(t)
            self.scores[:, :, self.kept : self.live] = 0
            self.live = self.kept
        if self.numbers.decay != 1.0:
            self.scores.mul_(self.numbers.decay)

    def _values(self, t: int) -> torch.Tensor:
        """What each live token is worth [B, h, live]; those in the window are worth +inf, so that they stay."""
        positions = self.positions[:, :, : self.live]
        value = self.scores[:, :, : self.live]
        if self.numbers.per_visit:
            value = value / (t + 1 - positions)  # every query from a token's own on could see it while it lived
        if self.numbers.score != RECEIVED:
            seen = Candidates(value, positions, t, self._lengths, lambda: self._weights(positions, t))
            value = SCORES[self.numbers.score].worth(seen)
        return value.masked_fill(positions > t - self.numbers.window, torch.inf)

    def _lengths(self) -> torch.Tensor:
        """[B, h, live]: L2 norms of the live tokens' values, in float32 at least."""
        return lengths(self.values[:, :, self.first : self.first + self.live])

    def _weights(self, positions: torch.Tensor, t: int) -> torch.Tensor:
        """float32 [B, h, live]: what the table says of tokens int32 [B, h, live] in the row of t; 1 without a table."""
        if self.numbers.table is None:
            return torch.ones_like(positions, dtype=torch.float32)
        row = self.numbers.table.row_of(t)
        if self._weighed is None or self._weighed[0] != row:
            self._weighed = row, self.numbers.table.to(positions.device).weights(row)
        return self._weighed[1].expand(len(positions), -1, -1).gather(-1, positions.long())

    def _drop_one(self, t: int) -> None:
        """Stride 1: the newest token takes the slot of the one that goes, or its own goes. Slots are in no order."""
        positions, value = self.positions[:, :, : self.live], self._values(t)
        least = value == value.amin(-1, keepdim=True)  # of equals the oldest goes
        loser = positions.masked_fill(~least, torch.iinfo(torch.int32).max).argmin(-1, keepdim=True)
        for tensor in (self.scores, self.positions):
            tensor.scatter_(-1, loser, tensor[..., self.kept : self.live].clone())
        self._move_newest(loser)

    def _move_newest(self, loser: torch.Tensor) -> None:
        """The newest token's key and value into slots [B, h, 1] of the image area."""
        rows = self._rows(loser)
        for tensor in (self.keys, self.values):
            newest = tensor[:, :, self.first + self.kept : self.first + self.live]
            tensor.view(-1, tensor.shape[3]).index_copy_(0, rows, newest.flatten(0, 2).clone())

    def _drop(self, t: int) -> None:
        """Longer strides: slots stay in order of age, so that a stable sort lets the oldest of equals go."""
        ranked = self._values(t).argsort(dim=-1, stable=True)
        staying = ranked[..., self.live - self.kept :].sort(-1).values
        for tensor in (self.scores, self.positions):
            tensor[..., : self.kept] = tensor.gather(-1, staying)
        self._move_front(staying)

    def _move_front(self, staying: torch.Tensor) -> None:
        """Keys and values of the slots [B, h, n] of the image area to its front, in this order."""
        rows = self._rows(staying)
        for tensor in (self.keys, self.values):
            chosen = tensor.view(-1, tensor.shape[3]).index_select(0, rows)
            tensor[:, :, self.first : self.first + self.kept] = chosen.view(*staying.shape, tensor.shape[3])

    def _rows(self, slots: torch.Tensor) -> torch.Tensor:
        """Slots [B, h, n] of the image area -> rows [B * h * n] of the keys seen as one table [B * h * slots, D]."""
        batch, heads, length, _ = self.keys.shape
        begin = torch.arange(self.first, self.first + batch * heads * length, length, device=slots.device)
        return (slots + begin.view(batch, heads, 1)).flatten()
