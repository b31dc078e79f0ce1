"""Step `card`: versions, the card, its bandwidth, and the matrix products of a decoding step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import torch

from headscope.benchmarks.gpu.clock import captured, seconds_of
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.roofline import Part, Roofline, products
from headscope.provenance import machine, version_of, versions


class _Whole(TypedDict):
    device: str
    dtype: torch.dtype


def run(context: Context) -> None:
    """Record what the card is and does; what comes first is what the others are predicted from."""
    context.record("versions", {**versions(), "triton": version_of("triton")})
    context.record("machine", {**machine(torch.device(context.device), context.torch_dtype), **_facts(context)})
    if context.cuda:
        context.record("driver", _driver())
    with torch.inference_mode():
        read = _bandwidth(context)
        rate = _large_product(context)
        _products(context, Roofline(read, rate))


def _facts(context: Context) -> dict[str, Any]:
    """What the driver says of the card; nothing on a CPU."""
    if not context.cuda:
        return {}
    found = torch.cuda.get_device_properties(context.device)
    names = ("name", "multi_processor_count", "L2_cache_size", "total_memory", "major", "minor")
    facts: dict[str, Any] = {name: getattr(found, name, None) for name in names}
    return {**facts, "cuda": torch.version.cuda, "free_memory": torch.cuda.mem_get_info(context.device)[0]}


def _driver() -> str:
    """The driver's version as it says itself; empty where there is none."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else ""


def _bandwidth(context: Context) -> float:
    """Bytes a second of copying, and of reading by a sum, of random numbers."""
    count = 1 << (16 if context.dry else 30)  # 4 GB
    numbers = torch.empty(count, device=context.device).normal_()
    other = torch.empty_like(numbers)
    copied = 2 * 4 * count / seconds_of(lambda: other.copy_(numbers), context.device, 10)
    context.record("bandwidth of copying", copied, "bytes/s", bytes=2 * 4 * count)
    out = torch.empty((), device=context.device)
    read = 4 * count / seconds_of(lambda: torch.sum(numbers, dim=0, out=out), context.device, 10)
    context.record("bandwidth of reading", read, "bytes/s", bytes=4 * count)
    return read


def _large_product(context: Context) -> float:
    """Operations a second of a product of 8192 x 8192."""
    side = 64 if context.dry else 8192
    dtype = torch.bfloat16 if context.cuda else torch.float32
    a, b, out = (torch.empty(side, side, device=context.device, dtype=dtype).normal_() for _ in range(3))
    rate = 2 * side**3 / seconds_of(lambda: torch.mm(a, b, out=out), context.device, 10)
    context.record("matrix product", rate, "operations/s", side=side, dtype=str(dtype).removeprefix("torch."))
    return rate


def _products(context: Context, roofline: Roofline) -> None:
    """The products of a step, all layers in turn so that no weight stays in the L2, each in a graph."""
    rows, whole = 2 * context.batch, _Whole(device=context.device, dtype=context.torch_dtype)
    for name, (times, wide, high) in products(context.size).items():
        weights = [torch.empty(high, wide, **whole).normal_(std=wide**-0.5) for _ in range(max(times, 4))]
        x, out = torch.randn(rows, wide, **whole), torch.empty(rows, high, **whole)

        def all_layers(weights: list[torch.Tensor] = weights, x: torch.Tensor = x, out: torch.Tensor = out) -> None:
            for weight in weights:
                torch.mm(x, weight.t(), out=out)

        seconds = seconds_of(captured(all_layers, context.device), context.device) * times / len(weights)
        part = Part(name, times * wide * high * context.itemsize, 2.0 * rows * times * wide * high)
        shown = {"rows": rows, "in": wide, "out": high, "times": times}
        context.record(f"product {name}", 1e3 * seconds, "ms", predicted=1e3 * roofline.seconds(part), **shown)
        del weights
