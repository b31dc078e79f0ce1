"""Buckets for rows at once: heads of one layer that remember alike, fed the tokens of one step of a schedule together.

Slots stand as in buckets.py, [ prefix P | anchors A | image ], but a step's tokens are attended to before they are written, so
that what stands in for a row's end is seen by its own query and then is gone. Queries see positions in raster order, whatever
slot they lie in: anchors lie in the slots of their numbers, others where there is room.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional

from headscope.policy import RECEIVED, SCORES, Bucket, Candidates, Schedule, Step
from headscope.runtime.buckets import HeavyHeads, KeptHeads, WindowHeads
from headscope.runtime.quantized_heads import Packed, PackedHeavyHeads, PackedWindowHeads


class WindowPlan:
    """Which slot each token takes in heads without heavy tokens; all layers and images share it.

    A token takes the first image slot that is free; one is free again in the step in which no query sees its token any more.

    Example: 4 x 4 tokens, w = 2, window 1, 4 image slots. Tokens 0 1 2 4 take slots 0 1 0 2: at step 2, with queries 2
    and 4, nothing sees 0 any more, and 4 takes a third slot, for 2 still sees 1.

    Args:
        schedule: of the image.
        window: tokens before a query.
        anchor: first image tokens that stay.
    """

    def __init__(self, schedule: Schedule, window: int, anchor: int) -> None:
        self.schedule, self.window, self.anchor = schedule, window, anchor
        self._slots = [-1] * (anchor + int(schedule.window_slots[window]))  # the token in each, -1 for none
        self._filled = 0
        self._found: list[tuple[torch.Tensor, list[int]]] = []

    def at(self, number: int) -> tuple[torch.Tensor, list[int]]:
        """Before a step: the tokens in the slots behind the prefix, int64 [filled], -1 where there is none. And the slots that
        the step's own tokens then take."""
        while len(self._found) <= number:
            self._found.append(self._next(self.schedule.steps[len(self._found)]))
        return self._found[number]

    def _next(self, step: Step) -> tuple[torch.Tensor, list[int]]:
        held, slots = torch.tensor(self._slots[: self._filled], dtype=torch.int64), self._slots
        for slot, token in enumerate(slots[self.anchor :], self.anchor):
            if token >= 0 and not any(0 <= query - token <= self.window for query in step.tokens):
                slots[slot] = -1
        taken = []
        for token in step.tokens:
            slot = token if token < self.anchor else slots.index(-1, self.anchor)
            slots[slot] = token
            taken.append(slot)
        self._filled = max(self._filled, *(slot + 1 for slot in taken))
        return held, taken


@lru_cache(maxsize=128)
@torch.inference_mode(False)
def window_plan(schedule: Schedule, window: int, anchor: int) -> WindowPlan:
    """The plan of such heads, made once."""
    return WindowPlan(schedule, window, anchor)


class Rows(KeptHeads):
    """What both kinds share."""

    plan: Schedule

    def _attended(
        self,
        query: torch.Tensor,
        asking: tuple[int, ...],
        filled: int,
        seen: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        chunk: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output [B, h, G * T, D] of queries like it, and where heads choose the attention [B, h, G * T, filled + T].

        Args:
            query: of T tokens, all query heads of a group in turn.
            asking: their positions.
            filled: slots in use, prefix included.
            seen: bool [1 or B, 1 or h, T, filled + T - P], by query the slots behind the prefix and the chunk's tokens.
            bias: the layer's.
            scale: of the scores.
            chunk: keys and values [B, h, T, D] of the step.
        """
        length = chunk[0].shape[2]
        groups = query.shape[2] // length
        mask = query.new_zeros(*seen.shape[:3], filled + length)
        mask[..., self.prefix :].masked_fill_(~seen, -torch.inf)
        mask = mask.repeat(1, 1, groups, 1)
        padding = self._padding(bias, filled, length)
        mask = mask if padding is None else mask + padding
        if isinstance(self, Packed):
            known = sum(position < self.numbers.anchor for position in asking)
            return self.attend(query, filled, mask, scale, self._read_chunk(*chunk, self.numbers.anchor - known))
        keys, values = torch.cat([self.keys[:, :, :filled], chunk[0]], 2), torch.cat([self.values[:, :, :filled], chunk[1]], 2)
        if not self.numbers.heavy:
            out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
            return out, None
        attention = torch.softmax(torch.matmul(query * scale, keys.transpose(2, 3)) + mask, -1, dtype=torch.float32)
        return torch.matmul(attention.to(query.dtype), values), attention

    def _write(self, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keys and values [B, h, n, D] into slots `slot` and on."""
        if isinstance(self, Packed):
            self.write(slot, key, value)
        else:
            self.fill_prefix(key, value, slot)


class RowsWindowHeads(Rows, WindowHeads):
    """Heads that see the prefix, the anchors, the `window` tokens before the query that were fed, and the query."""

    def __init__(self, bucket: Bucket, start: int, prefix: int, plan: Schedule, like: torch.Tensor) -> None:
        self.plan, self.ring = plan, int(plan.window_slots[bucket.window])
        KeptHeads.__init__(self, bucket, start, prefix, self.ring, like)

    def rows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: Step, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """One step. query [B, h, G * T, D], key and value [B, h, T, D], T with what stands in -> [B, h, G * T, D]."""
        window, anchor = self.numbers.window, self.numbers.anchor
        held, slots = window_plan(self.plan, window, anchor).at(step.number)
        asking = torch.tensor(step.positions, device=key.device)
        tokens = torch.cat([held.to(key.device), asking])
        seen = (tokens >= 0) & (tokens <= asking[:, None]) & ((tokens >= asking[:, None] - window) | (tokens < anchor))
        out, _ = self._attended(query, step.positions, self.prefix + len(held), seen[None, None], bias, scale, (key, value))
        for place, slot in enumerate(slots):
            self._write(self.prefix + slot, key[:, :, place : place + 1], value[:, :, place : place + 1])
        return out


class PackedRowsWindowHeads(RowsWindowHeads, PackedWindowHeads):
    """`RowsWindowHeads` in 8 or 4 bits."""

    def __init__(self, bucket: Bucket, start: int, prefix: int, plan: Schedule, like: torch.Tensor) -> None:
        self.plan, self.ring = plan, int(plan.window_slots[bucket.window])
        self.place(bucket, start, prefix)
        self.allocate(bucket, self.ring, like)


class RowsHeavyHeads(Rows, HeavyHeads):
    """Heads that also keep the `heavy` tokens with the best score, chosen at the end of a step that passes a stride end.

    Live tokens stand in the order in which they were fed, those of a step in raster order; of equal scores the later stays.
    """

    def __init__(self, bucket: Bucket, start: int, prefix: int, plan: Schedule, stride: int, like: torch.Tensor) -> None:
        slots = self._begin(bucket, plan, stride)
        KeptHeads.__init__(self, bucket, start, prefix, slots, like)
        self.begin_scores((like.shape[0], len(bucket.heads), slots), like.device)

    def _begin(self, bucket: Bucket, plan: Schedule, stride: int) -> int:
        """Slots of the image."""
        self.plan, self.stride = plan, stride
        self.kept = int(plan.protected_slots[bucket.window]) + bucket.heavy
        return self.kept + plan.buffer(stride)

    def rows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: Step, bias: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """As `RowsWindowHeads.rows`; also adds up scores, and chooses where the step passes a stride end."""
        anchor, count = self.numbers.anchor, len(step.tokens)
        batch, heads, length = key.shape[:3]
        asking = torch.tensor(step.positions, device=key.device)
        there = torch.from_numpy(self.plan.fed_at[:anchor] < step.number).to(key.device)
        fed = torch.where(there, torch.arange(anchor, device=key.device), self.plan.geometry.tokens)
        live = self.positions[:, :, : self.live].long()
        tokens = torch.cat([fed.expand(batch, heads, -1), live, asking.expand(batch, heads, -1)], -1)
        seen = tokens[:, :, None] <= asking[:, None]
        out, attention = self._attended(query, step.positions, self.first + self.live, seen, bias, scale, (key, value))
        assert attention is not None
        groups = query.shape[2] // length
        received = attention.unflatten(2, (groups, length))[:, :, :, :count, self.first :].sum((2, 3)) / groups
        known = sum(token < anchor for token in step.tokens)
        for place, token in enumerate(step.tokens[:known]):
            self._write(self.prefix + token, key[:, :, place : place + 1], value[:, :, place : place + 1])
        self.scores[:, :, : self.live] += received[..., : self.live]
        if known < count:
            self._write(self.first + self.live, key[:, :, known:count], value[:, :, known:count])
            new = slice(self.live, self.live + count - known)
            self.positions[:, :, new] = asking[known:count].int()
            self.scores[:, :, new] = received[..., self.live + known : self.live + count]
            self.live = new.stop
        if self.plan.chooses(step.number, self.stride):
            self._choose(step.number)
        return out

    def _choose(self, t: int) -> None:
        """The end of step t."""
        protected = torch.from_numpy(self.plan.protected(t, self.numbers.window)).to(self.positions.device)
        staying = int((protected >= self.numbers.anchor).sum()) + self.numbers.heavy
        if self.live > staying:
            self.kept = staying
            positions = self.positions[:, :, : self.live]
            worth = self._values(t).masked_fill(torch.isin(positions, protected.int()), torch.inf)
            self._keep_best(worth)
            self.scores[:, :, self.kept : self.live] = 0
            self.live = self.kept
        if self.numbers.decay != 1.0:
            self.scores.mul_(self.numbers.decay)

    def _values(self, t: int) -> torch.Tensor:
        """What each live token is worth at the end of step t, [B, h, live]."""
        positions, value = self.positions[:, :, : self.live], self.scores[:, :, : self.live]
        if self.numbers.per_visit:
            visits = torch.from_numpy(self.plan.visits(t)).to(positions.device)
            value = value / visits[positions.long()]
        if self.numbers.score == RECEIVED:
            return value.clone()
        newest = self.plan.fed(t) - 1  # as if row had followed row: tables tell rows of progress
        seen = Candidates(value, positions, newest, self._lengths, lambda: self._weights(positions, newest))
        return SCORES[self.numbers.score].worth(seen)

    def _keep_best(self, worth: torch.Tensor) -> None:
        """Move the live tokens of most worth [B, h, live] to the front, in their order."""
        ranked = worth.argsort(dim=-1, stable=True)
        staying = ranked[..., self.live - self.kept :].sort(-1).values
        for tensor in (self.scores, self.positions):
            tensor[..., : self.kept] = tensor.gather(-1, staying)
        self._move_front(staying)


class PackedRowsHeavyHeads(RowsHeavyHeads, PackedHeavyHeads):
    """`RowsHeavyHeads` in 8 or 4 bits."""

    def __init__(self, bucket: Bucket, start: int, prefix: int, plan: Schedule, stride: int, like: torch.Tensor) -> None:
        slots = self._begin(bucket, plan, stride)
        self.place(bucket, start, prefix)
        self.allocate(bucket, slots, like)
        self.begin_scores((like.shape[0], len(bucket.heads), slots), like.device)
