"""Part of the step `kernels`: what stands between the products of a layer, and sampling, against torch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from headscope.benchmarks.gpu.context import Context
from headscope.runtime.decoders.device_sampler import DeviceSampler
from headscope.runtime.decoders.llama_kernels import LlamaNorm, Products, silu_times_up
from headscope.runtime.noise import Noise
from headscope.runtime.sampling import guide, sample


def run(context: Context) -> list[str]:
    """Record errors -> what is off."""
    rows, size = (2, context.size) if context.dry else (256, context.size)
    width, dtype, device = size.heads * size.head_dim, context.torch_dtype, context.device
    generator = torch.Generator().manual_seed(3)

    def some(*lengths: int) -> torch.Tensor:
        return torch.randn(*lengths, generator=generator).to(device, dtype)

    norm = LlamaRMSNorm(width, eps=1e-6).to(device, dtype)
    norm.weight.data.copy_(some(width))
    x, gate_up, down = some(rows, width), some(rows, 2 * size.inner), some(width, size.inner) * size.inner**-0.5
    gate, up = gate_up.double().chunk(2, 1)
    wide = x.double()
    normed = wide * (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt() * norm.weight.double()
    acted = silu_times_up(gate_up)
    added = x.clone()
    Products(down, None).add_to(added, acted)
    errors = {
        "rms_norm": _relative(LlamaNorm(norm)(x), normed),
        "silu_times_up": _relative(acted, functional.silu(gate) * up),
        "product added to the residual stream": _relative(added, wide + acted.double() @ down.double().t()),
    }
    limit = 1e-2 if dtype.itemsize == 2 else 1e-4
    for name, error in errors.items():
        context.record(f"error of {name}", error, "relative", limit=limit, rows=rows)
    off = [name for name, error in errors.items() if not error <= limit]
    whats: tuple[dict[str, Any], ...] = ({}, {"top_k": min(50, size.codes // 2)}, {"temperature": 0.0},
                                         {"guidance": 1.0, "temperature": 0.7})  # fmt: skip
    for what in whats:
        unlike = _unlike_tokens(context, rows // 2, some, **what)
        context.record("tokens sampled otherwise", unlike, "tokens", of=rows // 2, sampling=what)
        off += [f"sampling {what}"] if unlike > rows // 100 else []  # logarithms may round apart where two codes tie
    return off


def _unlike_tokens(
    context: Context,
    images: int,
    some: Callable[..., torch.Tensor],
    guidance: float = 5.0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> int:
    """How many of `images` tokens differ from those that torch samples from the same logits and noise, on the CPU."""
    codes, device = context.size.codes, context.device
    streams = 1 if guidance == 1.0 else 2
    noise = Noise(range(images), 3, codes, device)
    record: Any = SimpleNamespace(guidance=guidance, temperature=temperature, top_k=top_k, noise=noise)
    table, x = some(codes, 32), some(streams * images, 32)
    sampler = DeviceSampler(record, images, 3, table, x)
    sampler.take(record)
    logits = some(streams * images, codes) * 2
    sampler(logits, torch.zeros(1, dtype=torch.int32, device=device), 1)
    on_host = Noise(range(images), 3, codes, "cpu").at(1)
    expected = sample(guide(logits.cpu(), guidance), on_host, temperature=temperature, top_k=top_k)[0]
    found = sampler.tokens[1].cpu()
    if not torch.equal(x.cpu(), table.cpu()[found].repeat(streams, 1)):
        return images
    return int((found != expected).sum())


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())
