"""Whole images: transformers' own `generate`, our full cache, and ours at 20 %, by batch; for the machine that has the GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch

from headscope.benchmarks.decoding import Row, bandwidth
from headscope.benchmarks.shapes import SIZES, random_janus
from headscope.models import resolve_device
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, Limit, Policy, make_preset, project
from headscope.progress import Progress, of_task
from headscope.runtime import Sampling, decoder_name, generate
from headscope.runtime.decoders.transformers import TransformersDecoder

COLUMNS = ["shape", "dtype", "batch", "variant", "ms_step", "tokens_s", "cache_bytes", "peak_mb", "limit_share", "decoder"]
VARIANTS = ("generate", "full", "20")


def bench_generate(
    shape: str = "janus-pro-1b",
    batches: Sequence[int] = (32, 64, 128),
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = 2,
    memories: Sequence[int] = (24, 80),
    progress: Progress | None = None,
    after: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """A row a batch and variant: COLUMNS.

    Guidance is on, so a batch of n images is 2 n rows. ms_step is the mean over a whole image of the fastest of `repeats`;
    tokens_s counts image tokens of images, not of rows; limit_share is the time that weights and the live cache need at the
    measured bandwidth, over that; decoder is the one that ran. Then, for cards of so many GB (`memories`), `20` and `full` once
    each at the largest batch that fits beside the weights, with the variant named so: `20@24GB`.

    Args:
        shape: a name of SIZES.
        batches: images generated together.
        dtype: of the weights, "float32" or "bfloat16".
        device: where the weights are.
        repeats: images that are timed, of which the fastest counts.
        memories: GB of the cards.
        progress: told of batches, see `headscope.progress`.
        after: called with the rows so far whenever there is a new one.
    """
    device = resolve_device(device)
    model = random_janus(shape, getattr(torch, dtype), device)
    policies = _policies(model)
    speed = bandwidth(device)
    weights = sum(p.numel() * p.element_size() for p in model.decoder.parameters())
    rows: list[Row] = []
    work = [(batch, name, name, repeats) for batch in batches for name in VARIANTS]
    if device != "cpu":
        work += _largest(model, policies, weights, memories)
    tell = of_task(progress, "batches and variants", len(work))
    for done, (batch, name, label, times) in enumerate(work):
        try:
            seconds, peak = _timed(model, policies.get(name), batch, times)
        except torch.cuda.OutOfMemoryError:
            seconds, peak = float("nan"), float("nan")
        plain = CacheSpec(model.shape, SIZES[shape].prefix, batch=batch, dtype=dtype)
        kept = plain.bytes_of(policies[name]) if name in policies else plain.full_bytes
        tokens = model.shape.geometry.tokens
        live = kept if name == "20" else plain.full_bytes / 2  # what is filled grows from nothing to all
        rows.append(
            {
                "shape": shape,
                "dtype": dtype,
                "batch": batch,
                "variant": label,
                "ms_step": 1e3 * seconds / tokens,
                "tokens_s": batch * tokens / seconds,
                "cache_bytes": kept,
                "peak_mb": peak,
                "limit_share": (weights + live) / speed * tokens / seconds,
                "decoder": decoder_name(model, policies[name]) if name in policies else TransformersDecoder.name,
            }
        )
        if after is not None:
            after(rows)
        tell(done + 1, len(work))
    return rows


def _largest(
    model: JanusModel, policies: dict[str, Policy], weights: int, memories: Sequence[int]
) -> list[tuple[int, str, str, int]]:
    """The largest batches beside the weights on cards of so many GB: (batch, policy, variant, images timed)."""
    found = []
    for memory in memories:
        for name in ("full", "20"):
            one = CacheSpec(model.shape, policies[name].prefix, dtype=str(model.dtype))
            an_image = one.bytes_of(policies[name]) + 40 * model.vocabulary
            batch = int((memory * 1e9 * 0.95 - weights - 1.5e9) // an_image)
            if batch > 0:
                found.append((batch, name, f"{name}@{memory}GB", 1))
    return found


def _policies(model: JanusModel) -> dict[str, Policy]:
    """Everything, and a fifth: in every layer half of the heads with a window, half with heavy tokens chosen at row ends."""
    shape, prefix = model.shape, SIZES[model.name].prefix
    semantic = torch.zeros(shape.layers, shape.kv_heads)
    semantic[:, ::2] = 1
    row = shape.geometry.row_length
    spec = CacheSpec(shape, prefix, dtype=str(model.dtype))
    limit = Limit.of_share(0.2, spec)
    window, heavy = project(1 - semantic, semantic, limit, stride=row)
    everything = make_preset("full", Limit.of_share(1.0, spec))
    return {"full": everything, "20": Policy.uniform(shape, window=window, heavy=heavy, stride=row, prefix=prefix)}


def _timed(model: JanusModel, policy: Policy | None, batch: int, repeats: int) -> tuple[float, float]:
    """Seconds of a batch, the least of `repeats` after one that is not counted, and the peak of the memory in MB (0: CPU)."""
    cuda = model.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    best = float("inf")
    for number in range(repeats + 1 if repeats > 1 else 1):
        began = time.perf_counter()
        if policy is None:
            prefix = model.tokenize(["a"] * batch)
            model.network.generate(
                prefix.ids,
                attention_mask=prefix.mask,
                generation_mode="image",
                do_sample=True,
                guidance_scale=5.0,
                max_length=prefix.ids.shape[1] + model.shape.geometry.tokens,
            )
        else:
            generate(model, ["a"] * batch, number, sampling=Sampling(guidance=5.0), policy=policy, batch_size=batch)
        if cuda:
            torch.cuda.synchronize()
        if number or repeats == 1:
            best = min(best, time.perf_counter() - began)
    return best, torch.cuda.max_memory_allocated() / 1e6 if cuda else 0.0
