"""Triton kernels over a layer's flat cache: attention of one token for all heads at once, and the choice at stride ends.

A layer's slots of all KV heads lie one after the other in keys and values [B, slots, D]; where a head's begin, where the token
t goes and how many slots it then sees are tables (`SlotTables`). Nothing depends on numbers that only the device knows, so a
captured graph may launch them; the number of the token is read from the device.

Without a GPU they run in Triton's interpreter: TRITON_INTERPRET=1 before this module is imported.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _receive(logits, scores, at, log_sum, first, length, score_at, row, step, heads_of: tl.constexpr, padded: tl.constexpr,
             block: tl.constexpr):  # fmt: skip
    """Add to a head's scores what its queries attended to: exp(logit - log_sum), mean over the group."""
    group = tl.arange(0, padded)
    inside = group < heads_of
    for start in range(first, length, block):
        slot = start + tl.arange(0, block)
        seen = slot < length
        found = tl.load(logits + (row + group[:, None]) * step + slot[None, :], mask=inside[:, None] & seen[None, :],
                        other=-float("inf"))  # fmt: skip
        share = tl.where(inside[:, None] & seen[None, :], tl.exp(found - log_sum[:, None]), 0.0)
        mass = tl.sum(share, 0) / heads_of
        place = scores + at + score_at + slot - first
        tl.store(place, tl.load(place, mask=seen, other=0.0) + mass, mask=seen)


@triton.jit
def attend(query, new_key, new_value, keys, values, scores, positions, logits, out, part_top, part_sum, part_out, padding, now,
           begins, firsts, score_begins, writes, lengths, scale, slots, score_slots, step, heads: tl.constexpr,
           heads_of: tl.constexpr, padded: tl.constexpr, size: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
           splits: tl.constexpr, precision: tl.constexpr):  # fmt: skip
    """One token for every KV head: program (b * heads + h, split).

    query [B, heads * heads_of, size], new_key, new_value [B, heads, size], keys, values [B, slots, size], scores, positions
    [B, score_slots], out as query. With one split the output and the scores are finished here, else by `combine`.
    """
    program, split = tl.program_id(0), tl.program_id(1)
    b, h = program // heads, program % heads
    t = tl.load(now)
    begin, first, score_at = tl.load(begins + h), tl.load(firsts + h), tl.load(score_begins + h)
    write, length = tl.load(writes + t * heads + h), tl.load(lengths + t * heads + h)
    unseen = tl.load(padding + b)
    d, group = tl.arange(0, wide), tl.arange(0, padded)
    in_size, inside = d < size, group < heads_of
    row = program * heads_of
    q = tl.load(query + (row + group[:, None]) * size + d[None, :], mask=inside[:, None] & in_size[None, :], other=0.0)
    key, value = tl.load(new_key + program * size + d, mask=in_size, other=0.0), tl.load(
        new_value + program * size + d, mask=in_size, other=0.0)  # fmt: skip
    q_wide = q.to(tl.float32) * scale
    own = tl.sum(q_wide * key.to(tl.float32)[None, :], 1)
    head_at = b.to(tl.int64) * slots + begin
    part = (length + splits - 1) // splits
    start_at, stop_at = split * part, tl.minimum(split * part + part, length)
    top = tl.full([padded], -float("inf"), tl.float32)
    total = tl.zeros([padded], tl.float32)
    sums = tl.zeros([padded, wide], tl.float32)
    for start in range(start_at, stop_at, block):
        slot = start + tl.arange(0, block)
        there = slot < stop_at
        place = (head_at + slot)[:, None] * size + d[None, :]
        cells = there[:, None] & in_size[None, :]
        k = tl.load(keys + place, mask=cells, other=0.0)
        if padded >= 16:
            found = tl.dot(q_wide, tl.trans(k.to(tl.float32)), input_precision=precision)
        else:
            found = tl.sum(q_wide[:, None, :] * k.to(tl.float32)[None, :, :], 2)
        is_new = slot == write
        found = tl.where(is_new[None, :], own[:, None], found)
        found = tl.where((there & (slot >= unseen))[None, :], found, -float("inf"))
        if score_at >= 0:
            tl.store(logits + (row + group[:, None]) * step + slot[None, :], found, mask=inside[:, None] & there[None, :])
        higher = tl.maximum(top, tl.max(found, 1))
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        share, less = tl.exp(found - safe[:, None]), tl.exp(top - safe)
        v = tl.where(is_new[:, None], value[None, :], tl.load(values + place, mask=cells, other=0.0))
        if padded >= 16:
            more = tl.dot(share, v.to(tl.float32), input_precision=precision)
        else:
            more = tl.sum(share[:, :, None] * v.to(tl.float32)[None, :, :], 1)
        sums = sums * less[:, None] + more
        total = total * less + tl.sum(share, 1)
        top = higher
    if (write >= start_at) & (write < stop_at):
        here = (head_at + write) * size + d
        tl.store(keys + here, key, mask=in_size)
        tl.store(values + here, value, mask=in_size)
        if (score_at >= 0) & (write >= first):
            tl.store(positions + b.to(tl.int64) * score_slots + score_at + write - first, t)
    cells_out = inside[:, None] & in_size[None, :]
    if splits == 1:
        tl.store(out + (row + group[:, None]) * size + d[None, :], sums / total[:, None], mask=cells_out)
        if score_at >= 0:
            tl.debug_barrier()  # other threads of this program wrote the logits
            _receive(logits, scores, b.to(tl.int64) * score_slots, top + tl.log(total), first, length, score_at, row, step,
                     heads_of, padded, block)  # fmt: skip
    else:
        cell = (row + group) * splits + split
        tl.store(part_top + cell, top, mask=inside)
        tl.store(part_sum + cell, total, mask=inside)
        tl.store(part_out + cell[:, None] * size + d[None, :], sums, mask=cells_out)


@triton.jit
def combine(scores, logits, out, part_top, part_sum, part_out, now, firsts, score_begins, lengths, score_slots, step,
            heads: tl.constexpr, heads_of: tl.constexpr, padded: tl.constexpr, size: tl.constexpr, wide: tl.constexpr,
            block: tl.constexpr, splits: tl.constexpr):  # fmt: skip
    """Join the splits of `attend`: program b * heads + h."""
    program = tl.program_id(0)
    b, h = program // heads, program % heads
    t = tl.load(now)
    first, score_at, length = tl.load(firsts + h), tl.load(score_begins + h), tl.load(lengths + t * heads + h)
    d, group = tl.arange(0, wide), tl.arange(0, padded)
    inside, row = group < heads_of, program * heads_of
    cells = inside[:, None] & (d < size)[None, :]
    top = tl.full([padded], -float("inf"), tl.float32)
    total = tl.zeros([padded], tl.float32)
    sums = tl.zeros([padded, wide], tl.float32)
    for split in range(splits):
        cell = (row + group) * splits + split
        one = tl.load(part_top + cell, mask=inside, other=-float("inf"))
        higher = tl.maximum(top, one)
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        less, more = tl.exp(top - safe), tl.exp(one - safe)
        found = tl.load(part_out + cell[:, None] * size + d[None, :], mask=cells, other=0.0)
        sums = sums * less[:, None] + found * more[:, None]
        total = total * less + tl.load(part_sum + cell, mask=inside, other=0.0) * more
        top = higher
    tl.store(out + (row + group[:, None]) * size + d[None, :], sums / total[:, None], mask=cells)
    if score_at >= 0:
        _receive(logits, scores, b.to(tl.int64) * score_slots, top + tl.log(total), first, length, score_at, row, step,
                 heads_of, padded, block)  # fmt: skip


@triton.jit
def choose(keys, values, scores, positions, holes, movers, now, heavy, begins, firsts, score_begins, lengths, windows, kepts,
           decays, per_visits, slots, score_slots, stride, heads: tl.constexpr, heavies: tl.constexpr, size: tl.constexpr,
           wide: tl.constexpr, most: tl.constexpr):  # fmt: skip
    """The stride end after the token `now`: program b * heavies + number of the heavy head.

    The newest `window` tokens and the best others stay, `kept` in all; those that stay behind slot `kept` take the slots of
    those that go, so nothing else moves. holes, movers: int32 [B, heavies, stride].
    """
    program = tl.program_id(0)
    b, number = program // heavies, program % heavies
    h = tl.load(heavy + number)
    t = tl.load(now)
    first, score_at = tl.load(firsts + h), tl.load(score_begins + h)
    live = tl.load(lengths + t * heads + h) - first
    kept, window = tl.load(kepts + h), tl.load(windows + h)
    at = b.to(tl.int64) * score_slots + score_at
    lane = tl.arange(0, most)
    alive = lane < live
    position = tl.load(positions + at + lane, mask=alive, other=-1)
    score = tl.load(scores + at + lane, mask=alive, other=0.0)
    if live > kept:
        by_visit = tl.load(per_visits + h) != 0
        worth = tl.where(by_visit, score / (t + 1 - position), score)
        worth = tl.where(position > t - window, float("inf"), worth)
        rank = tl.zeros([most], tl.int32)
        for other in range(live):
            their_position = tl.load(positions + at + other)
            theirs = tl.load(scores + at + other)
            theirs = tl.where(by_visit, theirs / (t + 1 - their_position), theirs)
            theirs = tl.where(their_position > t - window, float("inf"), theirs)
            before = (theirs > worth) | ((theirs == worth) & (their_position > position))
            rank += before.to(tl.int32)
        stays = alive & (rank < kept)
        hole = (lane < kept) & (rank >= kept)
        mover = stays & (lane >= kept)
        scratch = program * stride
        tl.store(holes + scratch + tl.cumsum(hole.to(tl.int32), 0) - 1, lane, mask=hole)
        tl.store(movers + scratch + tl.cumsum(mover.to(tl.int32), 0) - 1, lane, mask=mover)
        tl.debug_barrier()
        d = tl.arange(0, wide)
        in_size = d < size
        head_at = b.to(tl.int64) * slots + tl.load(begins + h) + first
        for one in range(tl.sum(hole.to(tl.int32), 0)):
            into, out_of = tl.load(holes + scratch + one), tl.load(movers + scratch + one)
            source, target = (head_at + out_of) * size + d, (head_at + into) * size + d
            tl.store(keys + target, tl.load(keys + source, mask=in_size), mask=in_size)
            tl.store(values + target, tl.load(values + source, mask=in_size), mask=in_size)
            tl.store(positions + at + into, tl.load(positions + at + out_of))
            tl.store(scores + at + into, tl.load(scores + at + out_of))
        tl.debug_barrier()
        score = tl.load(scores + at + lane, mask=lane < kept, other=0.0)
    tl.store(scores + at + lane, score * tl.load(decays + h), mask=alive)
