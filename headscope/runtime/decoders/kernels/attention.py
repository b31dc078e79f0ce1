"""Attention of one token for all heads of a layer at once: rotary embedding, the write into the cache, softmax, and scores.

A layer's slots of all KV heads lie one after the other in keys and values [B, slots, D]; slots of heads that are kept in fewer
bits lie behind their prefix and anchors in tensors of their own. Where a head's begin, where the token t goes and how many
slots it then sees are tables (`SlotTables`).

Logits are in units of log2, so that exp2 takes the place of exp. Products are taken by the tensor cores, whose least number of
rows is 16: the query heads of a group, and rows of zeros.

Long, because a kernel can't be cut where its numbers stay in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headscope.runtime.decoders.kernels.codes import (
    floats,
    halves_above,
    halves_of_four,
    unit_of,
    write_eight,
    write_four,
    zero_of,
)

# Numbers of a layer or a batch: a kernel is not compiled anew for those that are 1, or multiples of 16.
NUMBERS = ["batch", "prefix", "prefixes", "of_prefix", "front", "slots", "slots8", "slots4", "score_slots", "step", "stride"]


@triton.jit
def turned(numbers, cos, sin, d, mask, size: tl.constexpr):
    """Numbers d of a head after rotary embedding (RoFormer, 2104.09864, in Llama's halves), float32; sin is signed."""
    straight = tl.load(numbers + d, mask=mask, other=0.0).to(tl.float32)
    across = tl.load(numbers + (d + size // 2) % size, mask=mask, other=0.0).to(tl.float32)
    return straight * tl.load(cos + d, mask=mask, other=0.0) + across * tl.load(sin + d, mask=mask, other=0.0)


@triton.jit
def tile(numbers, place, d, size: tl.constexpr, wide: tl.constexpr):
    """Slots `place` [block] of numbers [.., size] -> [block, wide]."""
    cells = place[:, None] * size + d[None, :]
    if size == wide:
        found = tl.load(numbers + cells)
    else:
        found = tl.load(numbers + cells, mask=(d < size)[None, :], other=0)
    return found


@triton.jit
def keep(logits, found, slot, stop, step, heads_of: tl.constexpr, padded: tl.constexpr):
    """Write a tile of logits [padded, block] of a head with scores; `receive` reads them."""
    group = tl.arange(0, padded)
    inside = (group < heads_of)[:, None] & (slot < stop)[None, :]
    tl.store(logits + group[:, None].to(tl.int64) * step + slot[None, :], found, mask=inside)


@triton.jit
def softened(found, top, total):
    """One more tile of logits [rows, block] -> its weights, what those so far shrink by, the new top and total."""
    higher = tl.maximum(top, tl.max(found, 1))
    safe = tl.where(higher == -float("inf"), 0.0, higher)
    share, less = tl.exp2(found - safe[:, None]), tl.exp2(top - safe)
    return share, less, higher, total * less + tl.sum(share, 1)


@triton.jit
def receive(logits, scores, log_sum, first, length, row, step, heads_of: tl.constexpr, padded: tl.constexpr,
            block: tl.constexpr):  # fmt: skip
    """Add to a head's scores what its queries attended to: exp2(logit - log_sum), mean over the group."""
    group = tl.arange(0, padded)
    inside = group < heads_of
    if heads_of == 1:
        one = tl.sum(tl.where(inside, log_sum, 0.0), 0)
        for start in range(first, length, block):
            slot = start + tl.arange(0, block)
            seen = slot < length
            share = tl.exp2(tl.load(logits + row.to(tl.int64) * step + slot, mask=seen, other=-float("inf")) - one)
            place = scores + slot - first
            tl.store(place, tl.load(place, mask=seen, other=0.0) + share, mask=seen)
    else:
        for start in range(first, length, block):
            slot = start + tl.arange(0, block)
            seen = slot < length
            there = inside[:, None] & seen[None, :]
            found = tl.load(logits + (row + group[:, None]).to(tl.int64) * step + slot[None, :], mask=there,
                            other=-float("inf"))  # fmt: skip
            share = tl.where(there, tl.exp2(found - log_sum[:, None]), 0.0)
            place = scores + slot - first
            tl.store(place, tl.load(place, mask=seen, other=0.0) + tl.sum(share, 0) / heads_of, mask=seen)


@triton.jit(do_not_specialize=NUMBERS)
def attend(qkv, cos_table, sin_table, keys, values, codes8, steps8, codes4, steps4, scores, positions, logits, out, part_top,
           part_sum, part_out, padding, now, prompts, fronts, begins, firsts, score_begins, bits_of, code_begins, writes,
           lengths, scale, batch, prefix, prefixes, of_prefix, slots, slots8, slots4, score_slots, step, heads: tl.constexpr,
           heads_of: tl.constexpr, padded: tl.constexpr, size: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
           stages: tl.constexpr, splits: tl.constexpr, eight: tl.constexpr, four: tl.constexpr,
           exact: tl.constexpr):  # fmt: skip
    """One token for every KV head: program (b * heads + h, split).

    qkv [B, (heads * heads_of + 2 * heads) * size] as projected; keys, values [prefixes * of_prefix + B * slots, size], see
    `FlatLayer`; codes8 uint8 [2, B, slots8, size] and codes4 uint8 [2, B, slots4, bytes] of keys and values, steps8 and steps4
    int32 [2, B, slots, groups] their scales and zeros, float16 in the lower and the upper half; scores, positions
    [B, score_slots]; out [B, heads * heads_of * size]. With one split the output and the scores are finished here, else by
    `combine`. exact: products in float32.
    """
    program, split = tl.program_id(0), tl.program_id(1)
    b, h = program // heads, program % heads
    t = tl.load(now)
    begin, first, score_at = tl.load(begins + h), tl.load(firsts + h), tl.load(score_begins + h)
    write, length = tl.load(writes + t * heads + h), tl.load(lengths + t * heads + h)
    prompt = tl.load(prompts + h)
    unseen = tl.maximum(tl.load(padding + b) - (prefix - prompt), 0)  # of two slots the first, where both hold one token
    wide_b, row = b.to(tl.int64), program * heads_of
    cos, sin = cos_table + (prefix + t) * size, sin_table + (prefix + t) * size
    of_row = qkv + wide_b * (heads * (heads_of + 2) * size)
    new_key, new_value = of_row + (heads * heads_of + h) * size, of_row + (heads * (heads_of + 1) + h) * size
    d, group = tl.arange(0, wide), tl.arange(0, padded)
    inside = group < heads_of
    # Slots count from where the prompt would lie before what the row keeps of the image; `to_prompt` is where it does.
    at_image = prefixes.to(tl.int64) * of_prefix + wide_b * slots + begin - prompt
    to_prompt = (tl.minimum(b, prefixes - 1).to(tl.int64) * of_prefix + tl.load(fronts + h) - at_image).to(tl.int32)
    head_keys, head_values = keys + at_image * size, values + at_image * size
    part = (length + splits - 1) // splits
    start_at, stop_at = split * part, tl.minimum(split * part + part, length)
    plain_stop = stop_at
    if eight or four:
        bits, code_at = tl.load(bits_of + h), tl.load(code_begins + h)
        if bits < 16:
            plain_stop = tl.minimum(stop_at, first)

    queries = of_row + (h * heads_of + group[:, None]) * size
    q = turned(queries, cos, sin, d[None, :], inside[:, None] & (d < size)[None, :], size)
    dtype: tl.constexpr = tl.float32 if exact else keys.dtype.element_ty
    code_type: tl.constexpr = tl.float32 if exact else tl.float16
    q = q.to(keys.dtype.element_ty).to(dtype)
    if (write >= start_at) & (write < stop_at):
        if write < plain_stop:
            key = turned(new_key, cos, sin, d, d < size, size)
            tl.store(head_keys + write * size + d, key.to(keys.dtype.element_ty), mask=d < size)
            tl.store(head_values + write * size + d, tl.load(new_value + d, mask=d < size), mask=d < size)
        if eight:
            if (bits == 8) & (write >= first):
                at = wide_b * slots8 + code_at + write - first
                key = turned(new_key, cos, sin, d, d < size, size).to(keys.dtype.element_ty)
                write_eight(codes8, steps8, at, key.to(tl.float32), d, size)
                value = tl.load(new_value + d, mask=d < size, other=0.0).to(tl.float32)
                write_eight(codes8, steps8, at + batch.to(tl.int64) * slots8, value, d, size)
        if four:
            if (bits == 4) & (write >= first):
                at = wide_b * slots4 + code_at + write - first
                lane = tl.arange(0, wide // 32)[:, None] * 32 + 2 * tl.arange(0, 16)[None, :]
                low = turned(new_key, cos, sin, lane, lane < size, size).to(keys.dtype.element_ty)
                high = turned(new_key, cos, sin, lane + 1, lane + 1 < size, size).to(keys.dtype.element_ty)
                write_four(codes4, steps4, at, low.to(tl.float32), high.to(tl.float32), size, wide)
                low = tl.load(new_value + lane, mask=lane < size, other=0.0).to(tl.float32)
                high = tl.load(new_value + lane + 1, mask=lane + 1 < size, other=0.0).to(tl.float32)
                write_four(codes4, steps4, at + batch.to(tl.int64) * slots4, low, high, size, wide)
        if (score_at >= 0) & (write >= first):
            tl.store(positions + wide_b * score_slots + score_at + write - first, t)
    tl.debug_barrier()  # what one thread wrote the others read

    top = tl.full([padded], -float("inf"), tl.float32)
    total = tl.zeros([padded], tl.float32)
    sums = tl.zeros([padded, wide], tl.float32)
    kept_logits = logits + row.to(tl.int64) * step
    for start in tl.range(start_at, plain_stop, block, num_stages=stages):
        slot = start + tl.arange(0, block)
        place = tl.minimum(slot, plain_stop - 1)
        place = tl.where(place < prompt, place + to_prompt, place)
        k = tile(head_keys, place, d, size, wide)
        found = tl.dot(q, tl.trans(k.to(dtype)), input_precision="ieee") * scale
        found = tl.where(((slot < plain_stop) & (slot >= unseen))[None, :], found, -float("inf"))
        if score_at >= 0:
            keep(kept_logits, found, slot, plain_stop, step, heads_of, padded)
        share, less, top, total = softened(found, top, total)
        v = tile(head_values, place, d, size, wide)
        sums = tl.dot(share.to(dtype), v.to(dtype), sums * less[:, None], input_precision="ieee")

    if eight:
        if bits == 8:
            at = wide_b * slots8 + code_at
            values_on = batch.to(tl.int64) * slots8
            above: tl.constexpr = 0.0 if exact else 1024.0  # what is added to each code, and taken again after the products
            q8 = q.to(code_type)
            asked = tl.sum(q8.to(tl.float32), 1)
            for start in tl.range(tl.maximum(start_at, first), stop_at, block, num_stages=stages):
                slot = start + tl.arange(0, block)
                place = at + tl.minimum(slot, stop_at - 1) - first
                codes = tile(codes8, place, d, size, wide)
                pair = tl.load(steps8 + place)
                unit, zero = unit_of(pair).to(tl.float32), zero_of(pair).to(tl.float32)
                numbers = floats(codes) if exact else halves_above(codes)
                found = tl.dot(q8, tl.trans(numbers), input_precision="ieee")
                found = (found * unit[None, :] + asked[:, None] * (zero - above * unit)[None, :]) * scale
                found = tl.where((slot < stop_at)[None, :], found, -float("inf"))
                if score_at >= 0:
                    keep(kept_logits, found, slot, stop_at, step, heads_of, padded)
                share, less, top, total = softened(found, top, total)
                place += values_on
                codes = tile(codes8, place, d, size, wide)
                pair = tl.load(steps8 + place)
                unit, zero = unit_of(pair).to(tl.float32), zero_of(pair).to(tl.float32)
                weights = (share * unit[None, :]).to(code_type)
                zeros = tl.sum(share * zero[None, :] - above * weights.to(tl.float32), 1)
                numbers = floats(codes) if exact else halves_above(codes)
                sums = tl.dot(weights, numbers, sums * less[:, None] + zeros[:, None], input_precision="ieee")

    if four:
        if bits == 4:
            half: tl.constexpr = wide // 2
            groups: tl.constexpr = wide // 32
            taken: tl.constexpr = (size + 31) // 32
            row_bytes: tl.constexpr = (size + 1) // 2
            byte, part_of = tl.arange(0, half), tl.arange(0, groups)
            there = inside[:, None] & (2 * byte < size)[None, :]
            even = turned(queries, cos, sin, 2 * byte[None, :], there, size).to(keys.dtype.element_ty).to(code_type)
            there = inside[:, None] & (2 * byte + 1 < size)[None, :]
            odd = turned(queries, cos, sin, 2 * byte[None, :] + 1, there, size).to(keys.dtype.element_ty).to(code_type)
            at = wide_b * slots4 + code_at
            values_on = batch.to(tl.int64) * slots4
            lows, highs = tl.zeros([padded, half], tl.float32), tl.zeros([padded, half], tl.float32)
            shrunk = tl.full([padded], 1.0, tl.float32)
            for start in tl.range(tl.maximum(start_at, first), stop_at, block, num_stages=stages):
                slot = start + tl.arange(0, block)
                place = at + tl.minimum(slot, stop_at - 1) - first
                low, high = _read_four(codes4, steps4, place, byte, part_of, row_bytes, taken, groups, block, half, exact)
                found = tl.dot(even, tl.trans(low), input_precision="ieee")
                found = tl.dot(odd, tl.trans(high), found, input_precision="ieee") * scale
                found = tl.where((slot < stop_at)[None, :], found, -float("inf"))
                if score_at >= 0:
                    keep(kept_logits, found, slot, stop_at, step, heads_of, padded)
                share, less, top, total = softened(found, top, total)
                low, high = _read_four(
                    codes4, steps4, place + values_on, byte, part_of, row_bytes, taken, groups, block, half, exact
                )
                share, shrunk = share.to(code_type), shrunk * less
                lows = tl.dot(share, low, lows * less[:, None], input_precision="ieee")
                highs = tl.dot(share, high, highs * less[:, None], input_precision="ieee")
            sums = sums * shrunk[:, None] + tl.reshape(tl.join(lows, highs), (padded, wide))

    cells_out = inside[:, None] & (d < size)[None, :]
    if splits == 1:
        place = out + (row + group[:, None]).to(tl.int64) * size + d[None, :]
        tl.store(place, (sums / total[:, None]).to(out.dtype.element_ty), mask=cells_out)
        if score_at >= 0:
            tl.debug_barrier()  # other threads of this program wrote the logits
            receive(logits, scores + wide_b * score_slots + score_at, top + tl.log2(total), first, length, row, step,
                    heads_of, padded, block)  # fmt: skip
    else:
        cell = (row + group) * splits + split
        tl.store(part_top + cell, top, mask=inside)
        tl.store(part_sum + cell, total, mask=inside)
        tl.store(part_out + cell[:, None] * size + d[None, :], sums, mask=cells_out)


@triton.jit
def _read_four(codes4, steps4, place, byte, part_of, row_bytes: tl.constexpr, taken: tl.constexpr, groups: tl.constexpr,
               block: tl.constexpr, half: tl.constexpr, exact: tl.constexpr):  # fmt: skip
    """The even and the odd numbers of slots [block], [block, half] each, in float32 or float16."""
    codes = tl.load(codes4 + place[:, None] * row_bytes + byte[None, :], mask=(byte < row_bytes)[None, :], other=0)
    pair = tl.load(steps4 + place[:, None] * taken + tl.minimum(part_of, taken - 1)[None, :])
    pair = tl.reshape(tl.broadcast_to(pair[:, :, None], (block, groups, 16)), (block, half))
    if exact:
        unit, zero = unit_of(pair).to(tl.float32), zero_of(pair).to(tl.float32)
        low, high = floats(codes & 15) * unit + zero, floats(codes >> 4) * unit + zero
    else:
        low, high = halves_of_four(codes, pair)
    return low, high


@triton.jit(do_not_specialize=NUMBERS)
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
        less, more = tl.exp2(top - safe), tl.exp2(one - safe)
        found = tl.load(part_out + cell[:, None] * size + d[None, :], mask=cells, other=0.0)
        sums = sums * less[:, None] + found * more[:, None]
        total = total * less + tl.load(part_sum + cell, mask=inside, other=0.0) * more
        top = higher
    place = out + (row + group[:, None]).to(tl.int64) * size + d[None, :]
    tl.store(place, (sums / total[:, None]).to(out.dtype.element_ty), mask=cells)
    if score_at >= 0:
        receive(logits, scores + b.to(tl.int64) * score_slots + score_at, top + tl.log2(total), first, length, row, step,
                heads_of, padded, block)  # fmt: skip
