"""What heavy tokens are compared by where a head's kind of score is not attention received alone, see policy/scores.py."""

from __future__ import annotations

import triton
import triton.language as tl

from headscope.policy import BUILT_IN, EXPECTED, FLOOR, RECEIVED
from headscope.runtime.decoders.kernels.codes import floats, unit_of, zero_of

_RECEIVED = tl.constexpr(BUILT_IN.index(RECEIVED))
_EXPECTED = tl.constexpr(BUILT_IN.index(EXPECTED))
_FLOOR = tl.constexpr(FLOOR)
_MOST = tl.constexpr(20.0)  # of a weight's exponent, see score_table.py


@triton.jit
def weigh(worths, values, codes8, steps8, codes4, steps4, scores, positions, scale, rows, places, kind, table, bits, begin,
          begin8, begin4, live, t, window, by_visit, rank, grid_rows, tokens, size: tl.constexpr, wide: tl.constexpr,
          eight: tl.constexpr, four: tl.constexpr):  # fmt: skip
    """Write what a head's live tokens are worth into worths [live], inf for those of the window; each value is read once.

    scores, positions: the head's, as in `attend`. scale, rows, places: tables of weights, float16 [n, rank], int8
    [n, rank, grid_rows] and [n, rank, tokens]; table: which of them. begin, begin8, begin4: the head's first image slot in
    `values` and in the values' halves of the tensors in 8 and in 4 bits.
    """
    block: tl.constexpr = 4096 // wide
    row = t * grid_rows // tokens
    for start in range(0, live, block):
        slot = start + tl.arange(0, block)
        inside = slot < live
        position = tl.load(positions + slot, mask=inside, other=0)
        worth = tl.load(scores + slot, mask=inside, other=0.0)
        worth = tl.where(by_visit, worth / (t + 1 - position), worth)
        if kind != _RECEIVED:
            place = tl.minimum(slot, live - 1)
            squares = tl.zeros([block], tl.float32)
            if bits == 16:
                squares = _squares(values, begin + place, size, wide)
            if eight:
                if bits == 8:
                    squares = _squares_of_eight(codes8, steps8, begin8 + place, size, wide)
            if four:
                if bits == 4:
                    squares = _squares_of_four(codes4, steps4, begin4 + place, size, wide)
            if kind == _EXPECTED:
                exponent = tl.zeros([block], tl.float32)
                for k in range(rank):
                    term = table * rank + k
                    factor = tl.load(scale + term).to(tl.float32) * tl.load(rows + term * grid_rows + row).to(tl.float32)
                    exponent += factor * tl.load(places + term * tokens + position).to(tl.float32)
                worth = (worth + _FLOOR) * tl.exp2(tl.minimum(tl.maximum(exponent, -_MOST), _MOST))
            worth = worth * tl.sqrt_rn(squares)
        tl.store(worths + slot, tl.where(position > t - window, float("inf"), worth), mask=inside)


@triton.jit
def _squares(values, slot, size: tl.constexpr, wide: tl.constexpr):
    """Sums of squares of values in slots [block] of [.., size], in float32."""
    d = tl.arange(0, wide)
    found = tl.load(values + slot[:, None] * size + d[None, :], mask=(d < size)[None, :], other=0.0).to(tl.float32)
    return tl.sum(found * found, 1)


@triton.jit
def _squares_of_eight(codes8, steps8, slot, size: tl.constexpr, wide: tl.constexpr):
    """The same of values in 8 bits, as they are read back."""
    d = tl.arange(0, wide)
    pair = tl.load(steps8 + slot)
    codes = tl.load(codes8 + slot[:, None] * size + d[None, :], mask=(d < size)[None, :], other=0)
    found = floats(codes) * unit_of(pair).to(tl.float32)[:, None] + zero_of(pair).to(tl.float32)[:, None]
    return tl.sum(tl.where((d < size)[None, :], found * found, 0.0), 1)


@triton.jit
def _squares_of_four(codes4, steps4, slot, size: tl.constexpr, wide: tl.constexpr):
    """The same of values in 4 bits."""
    taken: tl.constexpr = (size + 31) // 32
    row_bytes: tl.constexpr = (size + 1) // 2
    byte = tl.arange(0, wide // 2)
    codes = tl.load(codes4 + slot[:, None] * row_bytes + byte[None, :], mask=(byte < row_bytes)[None, :], other=0)
    pair = tl.load(steps4 + slot[:, None] * taken + tl.minimum(byte // 16, taken - 1)[None, :])
    unit, zero = unit_of(pair).to(tl.float32), zero_of(pair).to(tl.float32)
    low, high = floats(codes & 15) * unit + zero, floats(codes >> 4) * unit + zero
    low = tl.where((2 * byte < size)[None, :], low * low, 0.0)
    return tl.sum(low + tl.where((2 * byte + 1 < size)[None, :], high * high, 0.0), 1)
