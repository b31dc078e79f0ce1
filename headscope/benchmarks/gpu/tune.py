"""Step `tune`: the attention kernel by block, warps and stages, all layers in turn so that nothing stays in the L2."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.clock import captured, seconds_of
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.roofline import live_bytes
from headscope.benchmarks.gpu.variants import policies
from headscope.policy import Policy
from headscope.runtime.decoders.flat_attention import KernelScratch, attend_flat
from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.decoders.settings import Settings, keep, key_of, rule

# Tried in this order, for as long as there is time: what was best on an H100 comes first.
TRIED = (
    Settings(64, 2, 2),
    *(Settings(16, 1, stages) for stages in (3, 2)),
    *(Settings(32, warps, 3) for warps in (2, 1)),
    Settings(32, 1, 2),
    *(Settings(16, 2, stages) for stages in (3, 2)),
    *(Settings(64, warps, 2) for warps in (1, 4)),
    *(Settings(32, warps, 2) for warps in (2, 4)),
    Settings(64, 2, 3),
    Settings(32, 1, 4),
    Settings(64, 4, 3),
    Settings(128, 4, 1),
    Settings(32, 4, 3),
    Settings(128, 4, 2),
    Settings(64, 8, 2),
)


def run(context: Context) -> None:
    """Record ms of attention in all layers for each variant and setting, and the best; with `tune` keep the best."""
    model = context.model()
    found = policies(model)
    share = {"20": 0.25, "20_at_8": 0.45, "20_at_4": 0.7, "full": 1.0}  # of the time that is left when its turn comes
    for name in share:
        until = context.left() * (1 - share[name])
        _variant(context, name, found[name], until)


def _variant(context: Context, name: str, policy: Policy, until: float) -> None:
    faults.forget()
    size, t = context.size, policy.shape.geometry.tokens // 2
    try:
        layers, qkv, angles = _layers(context, policy)
    except Exception as error:  # the other variants go on
        context.fault(faults.sentence(error, f"tuning, variant {name}"), variant=name)
        return
    now = torch.tensor([t], dtype=torch.int32, device=context.device)
    live = float(live_bytes(policy, size.prefix, 2 * context.batch, context.itemsize)[t])
    roofline, best = context.roofline(), (float("inf"), rule(context.torch_dtype, size.head_dim))
    for settings in _tried(context):
        if context.left() < until:
            break
        scratch = KernelScratch(layers, None, settings)

        def all_layers(scratch: KernelScratch = scratch) -> None:
            for layer in layers:
                attend_flat(layer, scratch, qkv, angles, now, size.head_dim**-0.5)

        shown = {"variant": name, "batch": context.batch, "token": t, "splits": scratch.splits, **vars(settings)}
        try:
            with torch.inference_mode():
                seconds = seconds_of(captured(all_layers, context.device), context.device, 1 if context.dry else 10)
        except Exception as error:  # too much shared memory, say
            context.fault(faults.sentence(error, f"tuning, {settings}"), **shown)
            continue
        least = None if roofline is None else 1e3 * live / roofline.bandwidth
        context.record("attention in all layers", 1e3 * seconds, "ms", predicted=least, live_bytes=live, **shown)
        best = min(best, (seconds, settings), key=lambda one: one[0])
    group, bits = size.heads // size.kv_heads, int(policy.bits.min())
    key = key_of(context.torch_dtype, size.head_dim, group, bits)
    context.record("best settings", vars(best[1]), variant=name, key=key, ms=1e3 * best[0])
    if context.tune and name != "full":
        keep(context.card, key, best[1])


def _tried(context: Context) -> Iterator[Settings]:
    yield from TRIED[:1] if context.dry else TRIED


def _layers(context: Context, policy: Policy) -> tuple[list[FlatLayer], torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """All layers' caches with random numbers, and what a token brings."""
    size, rows = context.size, 2 * context.batch
    padding = torch.zeros(rows, dtype=torch.int32, device=context.device)
    like = torch.empty(1, device=context.device, dtype=context.torch_dtype)
    like = like.expand(rows, size.kv_heads, size.prefix, size.head_dim)
    layers = [FlatLayer(policy, layer, like, padding) for layer in range(size.layers)]
    for layer in layers:
        for tensor in (layer.keys, layer.values):
            tensor.normal_()
        for codes in layer.codes.values():
            codes.random_()
        for steps in layer.steps.values():
            steps.uniform_(0.01, 0.02)
    qkv = torch.empty(rows, (size.heads + 2 * size.kv_heads) * size.head_dim, device=context.device, dtype=context.torch_dtype)
    angles = torch.empty(2, size.prefix + size.side**2, size.head_dim, device=context.device, dtype=context.torch_dtype)
    return layers, qkv.normal_(), (angles[0].uniform_(-1, 1), angles[1].uniform_(-1, 1))
