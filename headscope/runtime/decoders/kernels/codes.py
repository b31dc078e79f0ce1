"""Numbers in 8 and 4 bits inside kernels; what is written and how it is read back is defined in runtime/quantized.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def floats(codes):
    """uint8 -> float32 by the bits of 2^23 + code, which takes two plain instructions where a conversion takes a slow one."""
    return (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def halves_above(codes):
    """uint8 -> 1024 + code in float16, four at a time: a code is the low byte of that number. See `attend` for the 1024.

    Not pure: so that codes are turned as they were loaded, sixteen bytes at a time, and not number by number after they went
    through the shared memory.
    """
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $2, 0x64646464, 0x4140; prmt.b32 $1, $2, 0x64646464, 0x4342;",
        "=r,=r,r",
        [codes],
        dtype=tl.float16,
        is_pure=False,
        pack=4,
    )


@triton.jit
def halves_of_four(codes, step):
    """uint8 -> what its lower and its upper four bits mean, float16, four bytes at a time; step: each byte's scale and zero."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 away, low, high, unit, zero, unit2, zero2;
        mov.b32 away, 0xE400E400;
        prmt.b32 unit, $5, $6, 0x5410;
        prmt.b32 zero, $5, $6, 0x7632;
        prmt.b32 unit2, $7, $8, 0x5410;
        prmt.b32 zero2, $7, $8, 0x7632;
        and.b32 low, $4, 0x0F0F0F0F;
        shr.u32 high, $4, 4;
        and.b32 high, high, 0x0F0F0F0F;
        prmt.b32 $0, low, 0x64646464, 0x4140;
        prmt.b32 $1, low, 0x64646464, 0x4342;
        prmt.b32 $2, high, 0x64646464, 0x4140;
        prmt.b32 $3, high, 0x64646464, 0x4342;
        add.f16x2 $0, $0, away;
        add.f16x2 $1, $1, away;
        add.f16x2 $2, $2, away;
        add.f16x2 $3, $3, away;
        fma.rn.f16x2 $0, $0, unit, zero;
        fma.rn.f16x2 $1, $1, unit2, zero2;
        fma.rn.f16x2 $2, $2, unit, zero;
        fma.rn.f16x2 $3, $3, unit2, zero2;
        }""",
        "=r,=r,=r,=r,r,r,r,r,r",
        [codes, step],
        dtype=(tl.float16, tl.float16),
        is_pure=False,
        pack=4,
    )


@triton.jit
def unit_of(step):
    """The scale of a step: float16 in the lower half of int32."""
    return step.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def zero_of(step):
    """The zero of a step: float16 in the upper half of int32."""
    return (step >> 16).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def joined(unit, zero):
    """A step of scale and zero, float16 each."""
    return (unit.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF) | (zero.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def step_of(low, high, most: tl.constexpr):
    """Scale and zero in float16, of the least and the largest number of a group."""
    return tl.div_rn(high - low, most * 1.0).to(tl.float16), low.to(tl.float16)


@triton.jit
def coded(numbers, unit, zero, most: tl.constexpr):
    """float32 -> uint8, rounded half to even (adding 1.5 * 2^23 leaves no room for a fraction); unit 0 gives 0."""
    unit, zero = unit.to(tl.float32), zero.to(tl.float32)
    steps = tl.div_rn(numbers - zero, tl.where(unit == 0.0, 1.0, unit))
    steps = tl.minimum(tl.maximum(steps, 0.0), most * 1.0)
    return tl.where(unit == 0.0, 0.0, (steps + 12582912.0) - 12582912.0).to(tl.uint8)


@triton.jit
def write_eight(codes8, steps8, at, numbers, d, size: tl.constexpr):
    """A head's numbers float32 [wide] into slot `at`."""
    inside = d < size
    low = tl.min(tl.where(inside, numbers, float("inf")), 0) + tl.sum(numbers * 0.0, 0)  # NaN where one is none
    high = tl.max(tl.where(inside, numbers, -float("inf")), 0)
    unit, zero = step_of(low, high, 255)
    tl.store(codes8 + at * size + d, coded(numbers, unit, zero, 255), mask=inside)
    tl.store(steps8 + at, joined(unit, zero))


@triton.jit
def write_four(codes4, steps4, at, low, high, size: tl.constexpr, wide: tl.constexpr):
    """A head's even and odd numbers float32 [groups, 16] each into slot `at`, two to a byte."""
    taken: tl.constexpr = (size + 31) // 32
    row_bytes: tl.constexpr = (size + 1) // 2
    group, lane = tl.arange(0, wide // 32), tl.arange(0, 16)
    number = group[:, None] * 32 + 2 * lane[None, :]
    in_low, in_high = number < size, number + 1 < size
    lowest = tl.minimum(tl.where(in_low, low, float("inf")), tl.where(in_high, high, float("inf")))
    highest = tl.maximum(tl.where(in_low, low, -float("inf")), tl.where(in_high, high, -float("inf")))
    least = tl.min(lowest, 1) + tl.sum(low * 0.0 + high * 0.0, 1)  # NaN where one is none
    unit, zero = step_of(least, tl.max(highest, 1), 15)
    first = coded(low, unit[:, None], zero[:, None], 15)
    second = tl.where(in_high, coded(high, unit[:, None], zero[:, None], 15).to(tl.int32), 0)
    tl.store(codes4 + at * row_bytes + number // 2, (first.to(tl.int32) | (second << 4)).to(tl.uint8), mask=in_low)
    tl.store(steps4 + at * taken + group, joined(unit, zero), mask=group < taken)
