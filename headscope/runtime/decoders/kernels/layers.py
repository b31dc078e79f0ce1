"""What stands between the matrix products of a Llama layer: the norm, and SiLU times up, one launch each."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm(x, weight, out, epsilon, size: tl.constexpr, wide: tl.constexpr):
    """LlamaRMSNorm of a row: x, out [B, size]; program b. In float32, the weight in the model's dtype."""
    row = tl.program_id(0).to(tl.int64) * size
    lane = tl.arange(0, wide)
    inside = lane < size
    found = tl.load(x + row + lane, mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(found * found, 0) / size + epsilon)
    normed = (found * factor).to(out.dtype.element_ty).to(tl.float32)
    normed *= tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + lane, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_times_up(gate_up, out, size, block: tl.constexpr):
    """gate_up [B, 2 * size] -> out [B, size]: silu(gate) * up; program (b, block of numbers)."""
    row, lane = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = lane < size
    gate = tl.load(gate_up + 2 * row * size + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (2 * row + 1) * size + lane, mask=inside, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + lane, (opened * up).to(out.dtype.element_ty), mask=inside)
