"""The choice at stride ends: which tokens of the heavy heads stay, and who takes the slots of those that go."""

from __future__ import annotations

import triton
import triton.language as tl

from headscope.runtime.decoders.kernels.attention import NUMBERS
from headscope.runtime.decoders.kernels.worth import weigh

TABLES = ["step", "rank", "grid_rows", "tokens"]


@triton.jit(do_not_specialize=[*NUMBERS, *TABLES])
def choose(keys, values, codes8, steps8, codes4, steps4, scores, positions, holes, movers, worths, now, heavy, image_begins,
           firsts, score_begins, bits_of, code_begins, lengths, windows, kepts, decays, per_visits, kinds, table_of, scale,
           rows, places, batch, front, slots, slots8, slots4, score_slots, stride, step, rank, grid_rows, tokens,
           heads: tl.constexpr, heavies: tl.constexpr, size: tl.constexpr, wide: tl.constexpr, most: tl.constexpr,
           eight: tl.constexpr, four: tl.constexpr, scored: tl.constexpr):  # fmt: skip
    """The stride end after the token `now`: program b * heavies + number of the heavy head.

    The newest `window` tokens and the best others stay, `kept` in all; those that stay behind slot `kept` take the slots of
    those that go, so nothing else moves. holes, movers: int32 [B, heavies, stride]; worths: float32 [.., step], a row a
    program; the others as in `attend` and `weigh`. scored: whether any head compares by more than attention received.
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
        worths += program.to(tl.int64) * step
        if scored:
            bits, code_at = tl.load(bits_of + h), tl.load(code_begins + h)
            plain_at = front + b.to(tl.int64) * slots + tl.load(image_begins + h)
            weigh(worths, values, codes8, steps8, codes4, steps4, scores + at, positions + at, scale, rows, places,
                  tl.load(kinds + number), tl.load(table_of + number), bits, plain_at,
                  (batch + b).to(tl.int64) * slots8 + code_at, (batch + b).to(tl.int64) * slots4 + code_at, live, t, window,
                  by_visit, rank, grid_rows, tokens, size, wide, eight, four)  # fmt: skip
            tl.debug_barrier()  # what one thread wrote the others read
            worth = tl.load(worths + lane, mask=alive, other=0.0)
        else:
            worth = tl.where(by_visit, score / (t + 1 - position), score)
            worth = tl.where(position > t - window, float("inf"), worth)
        better = tl.zeros([most], tl.int32)
        for other in range(live):
            their_position = tl.load(positions + at + other)
            if scored:
                theirs = tl.load(worths + other)
            else:
                theirs = tl.load(scores + at + other)
                theirs = tl.where(by_visit, theirs / (t + 1 - their_position), theirs)
                theirs = tl.where(their_position > t - window, float("inf"), theirs)
            before = (theirs > worth) | ((theirs == worth) & (their_position > position))
            better += before.to(tl.int32)
        stays = alive & (better < kept)
        hole = (lane < kept) & (better >= kept)
        mover = stays & (lane >= kept)
        scratch = program * stride
        tl.store(holes + scratch + tl.cumsum(hole.to(tl.int32), 0) - 1, lane, mask=hole)
        tl.store(movers + scratch + tl.cumsum(mover.to(tl.int32), 0) - 1, lane, mask=mover)
        tl.debug_barrier()
        d = tl.arange(0, wide)
        moving = tl.sum(hole.to(tl.int32), 0)
        holes += scratch
        movers += scratch
        if eight or four:
            bits, code_at = tl.load(bits_of + h), tl.load(code_begins + h)
            if eight:
                if bits == 8:
                    begin8, values_on8 = b.to(tl.int64) * slots8 + code_at, batch.to(tl.int64) * slots8
                    _move(codes8, begin8, values_on8, holes, movers, moving, d, size)
                    _move(steps8, begin8, values_on8, holes, movers, moving, tl.arange(0, 2), 1)
            if four:
                if bits == 4:
                    begin4, values_on4 = b.to(tl.int64) * slots4 + code_at, batch.to(tl.int64) * slots4
                    _move(codes4, begin4, values_on4, holes, movers, moving, d, (size + 1) // 2)
                    _move(steps4, begin4, values_on4, holes, movers, moving, tl.arange(0, wide // 32), (size + 31) // 32)
            if bits == 16:
                begin = front + b.to(tl.int64) * slots + tl.load(image_begins + h)
                _move_both(keys, values, begin, holes, movers, moving, d, size)
        else:
            begin = front + b.to(tl.int64) * slots + tl.load(image_begins + h)
            _move_both(keys, values, begin, holes, movers, moving, d, size)
        for one in range(moving):
            into, out_of = tl.load(holes + one), tl.load(movers + one)
            tl.store(positions + at + into, tl.load(positions + at + out_of))
            tl.store(scores + at + into, tl.load(scores + at + out_of))
        tl.debug_barrier()
        score = tl.load(scores + at + lane, mask=lane < kept, other=0.0)
    tl.store(scores + at + lane, score * tl.load(decays + h), mask=alive)


@triton.jit
def _move(numbers, begin, values_on, holes, movers, moving, lane, width: tl.constexpr):
    """Slots of keys and of values, `width` numbers each, in one tensor."""
    for one in range(moving):
        into, out_of = begin + tl.load(holes + one), begin + tl.load(movers + one)
        for _ in tl.static_range(2):
            tl.store(numbers + into * width + lane, tl.load(numbers + out_of * width + lane, mask=lane < width),
                     mask=lane < width)  # fmt: skip
            into += values_on
            out_of += values_on


@triton.jit
def _move_both(keys, values, begin, holes, movers, moving, d, size: tl.constexpr):
    """Slots of keys and of values in tensors of their own."""
    for one in range(moving):
        source, target = (begin + tl.load(movers + one)) * size + d, (begin + tl.load(holes + one)) * size + d
        tl.store(keys + target, tl.load(keys + source, mask=d < size), mask=d < size)
        tl.store(values + target, tl.load(values + source, mask=d < size), mask=d < size)
