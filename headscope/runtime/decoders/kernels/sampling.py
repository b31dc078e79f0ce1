"""Sampling on the device: guidance, temperature, Gumbel noise and argmax as runtime/sampling.py defines them.

`draw` finds the best code of every block of codes, `settle` the best of all, and feeds it: it writes the token and its
embedding. `floor_of` finds the k-th largest logit where only the top k are sampled.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finalized(x):
    """Wellons' lowbias32, as runtime/noise.py has it; uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def gumbel(code, low, high, largest):
    """The noise of codes for the key (low, high) of an image's seed and token; float32."""
    bits = finalized(
        finalized((code.to(tl.uint32) * 0x9E3779B1) ^ low.to(tl.uint32, bitcast=True)) ^ high.to(tl.uint32, bitcast=True)
    )
    uniform = ((bits >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    return tl.minimum(-tl.log(-tl.log(uniform)), largest)


@triton.jit
def guided_logits(logits, image, images, code, inside, scale, codes, guided: tl.constexpr):
    """u + scale * (c - u) as torch.lerp computes it; float32."""
    found = tl.load(logits + image.to(tl.int64) * codes + code, mask=inside, other=-float("inf")).to(tl.float32)
    if guided:
        u = tl.load(logits + (images + image).to(tl.int64) * codes + code, mask=inside, other=0.0).to(tl.float32)
        c, apart = found, found - u
        mixed = tl.where(tl.abs(scale) < 0.5, u + scale * apart, c - apart * (1.0 - scale))
        found = tl.where(inside, mixed, -float("inf"))
    return found


@triton.jit
def floor_of(logits, floors, scale, images, codes, top_k, wide: tl.constexpr, guided: tl.constexpr):
    """The k-th largest logit of an image: program image. By bisection over numbers in the order of their bits."""
    image, code = tl.program_id(0), tl.arange(0, wide)
    found = guided_logits(logits, image, images, code, code < codes, scale, codes, guided)
    raw = found.to(tl.int32, bitcast=True)
    key = tl.where(raw < 0, raw ^ 0x7FFFFFFF, raw)  # int32 in the order of the floats
    key = tl.where(code < codes, key, -2147483648)
    reached = -2147483648 + tl.zeros([1], tl.int64)
    for step in tl.static_range(32):
        higher = reached + (1 << (31 - step))
        enough = tl.sum((key.to(tl.int64) >= higher).to(tl.int32), 0) >= top_k
        reached = tl.where(enough, higher, reached)
    kth = reached.to(tl.int32)
    kth = tl.where(kth < 0, kth ^ 0x7FFFFFFF, kth)
    tl.store(floors + image + tl.zeros([1], tl.int32), kth.to(tl.float32, bitcast=True))


@triton.jit
def draw(logits, low, high, floors, tops, places, now, ahead, scale, temperature, largest, images, codes,
         block: tl.constexpr, guided: tl.constexpr, greedy: tl.constexpr, limited: tl.constexpr):  # fmt: skip
    """The best code of a block of codes: program (image, block). low, high int32 [N, images]: keys of the noise.

    tops float32 and places int32 [images, blocks]; a top is infinite where a number of the block is none.
    """
    image, part = tl.program_id(0), tl.program_id(1)
    code = part * block + tl.arange(0, block)
    inside = code < codes
    found = guided_logits(logits, image, images, code, inside, scale, codes, guided)
    found = tl.where(found != found, float("inf"), found)
    none = tl.max(found, 0) == float("inf")
    if not greedy:
        if limited:
            found = tl.where(found < tl.load(floors + image), -float("inf"), found)
        t = tl.load(now) + ahead
        noise = gumbel(code, tl.load(low + t * images + image), tl.load(high + t * images + image), largest)
        found = found / temperature + noise
    top, place = tl.max(found, 0, return_indices=True)
    at = image * tl.num_programs(1) + part
    tl.store(tops + at, tl.where(none, float("inf"), top))
    tl.store(places + at, part * block + place)


@triton.jit
def settle(tops, places, tokens, failed, table, x, now, ahead, images, blocks, wide_blocks: tl.constexpr,
           size: tl.constexpr, wide: tl.constexpr, streams: tl.constexpr):  # fmt: skip
    """The best code of an image, and its embedding into the rows of all its streams: program image.

    tokens int64 [N, images]; failed int64 [1], the first token without finite numbers; table [codes, size]; x
    [streams * images, size].
    """
    image = tl.program_id(0)
    t = tl.load(now) + ahead
    part = tl.arange(0, wide_blocks)
    top = tl.load(tops + image * blocks + part, mask=part < blocks, other=-float("inf"))
    best = tl.max(top, 0)
    code = tl.min(tl.where(top == best, tl.load(places + image * blocks + part, mask=part < blocks, other=0), 2147483647), 0)
    finite = (best < float("inf")) & (best > -float("inf"))
    tl.store(tokens + t.to(tl.int64) * images + image, code.to(tl.int64))
    if not finite:
        tl.atomic_min(failed, t.to(tl.int64))
    lane = tl.arange(0, wide)
    embedding = tl.load(table + code.to(tl.int64) * size + lane, mask=lane < size)
    for stream in tl.static_range(streams):
        tl.store(x + (stream * images + image).to(tl.int64) * size + lane, embedding, mask=lane < size)
