"""What a decoding step costs: transformers' caches, ours at several sizes, and no past at all, taking turns in one run.

The step is the decoder's: embedding in, hidden state out. Of rows that are not timed only keys, values and queries are made
up and taken in, so that a few rows stand for the whole image; the last row is timed always.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Cache, DynamicCache, StaticCache

from headscope.benchmarks.shapes import RandomDecoder
from headscope.models import resolve_device
from headscope.policy import CacheSpec, Limit, Policy, make_preset, project
from headscope.progress import Progress, of_task
from headscope.runtime import CompressedCache, compressed
from headscope.runtime.buckets import HeavyHeads
from headscope.runtime.decoders.llama_cpu import LlamaCpuDecoder, LlamaStep, step_for
from headscope.runtime.decoders.transformers import TransformersDecoder

COLUMNS = ["dtype", "batch", "variant", "ms_step", "ms_last_row", "tokens_s", "cache_bytes", "peak_mb", "limit_share",
           "ms_median", "ms_least", "decoder"]  # fmt: skip
VARIANTS = ("dynamic", "static", "full", "50", "20", "10", "20_semantic", "20_mixed", "20_at_8", "20_at_4", "floor")
_MARK = "headscope: a decoding step"
Row = dict[str, Any]


def bench_decode(
    shape: str = "laptop",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    batches: Sequence[int] = (16, 64),
    *,
    rows: int = 4,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[list[Row], list[Row]]:
    """A row a dtype, batch and variant, and the times of every timed row of the image.

    Variants: transformers' `dynamic` and `static` caches in its own forward; `full` and shares kept in ours, see `policies`;
    `floor` has no past at all.

    Args:
        shape: a name of SIZES.
        dtypes: of the weights, "float32" or "bfloat16".
        batches: rows of the batch.
        rows: timed rows of the image before its last, in equal parts of it.
        device: where the weights are.
        progress: told of rows of the image, see `headscope.progress`.

    Returns:
        Rows of COLUMNS. ms_step: over the image; ms_last_row, ms_median and ms_least: mean, median and least of its last row.
        limit_share: the time that weights and live cache need at the measured bandwidth, over the time of the last row.
        decoder: the one that takes the step.
        The second: dtype, batch, variant, row, ms (mean), ms_least.
    """
    found: list[Row] = []
    curves: list[Row] = []
    device = resolve_device(device)
    speed = bandwidth(device)
    for dtype in dtypes:
        model = RandomDecoder(shape, getattr(torch, dtype), device)
        for batch in batches:
            runs = [_Run(model, name, batch) for name in VARIANTS]
            timed = _time(model, runs, rows, of_task(progress, f"{dtype}, batch {batch}", model.shape.geometry.rows))
            for run in runs:
                facts = {"dtype": dtype, "batch": batch, "variant": run.name}
                found.append({**facts, **_measures(run, timed[run.name], speed)})
                curves += [
                    {**facts, "row": row, "ms": 1e3 * mean(times), "ms_least": 1e3 * min(times)}
                    for row, times in sorted(timed[run.name].items())
                ]
            del runs
            gc.collect()
    return found, curves


def _measures(run: _Run, by_row: dict[int, list[float]], speed: float) -> Row:
    """COLUMNS from "ms_step" on, of the seconds by row of the image."""
    last = by_row[max(by_row)]
    image = mean([mean(times) for row, times in by_row.items() if row != max(by_row)])
    weights = run.model.weight_bytes()
    return {
        "ms_step": 1e3 * image,
        "ms_last_row": 1e3 * mean(last),
        "tokens_s": run.batch / image,
        "cache_bytes": run.nbytes(),
        "peak_mb": (weights + run.nbytes() + run.extra_bytes()) / 1e6,
        "limit_share": (weights + run.nbytes()) / speed / mean(last),
        "ms_median": 1e3 * median(last),
        "ms_least": 1e3 * min(last),
        "decoder": run.decoder,
    }


def policies(model: RandomDecoder) -> dict[str, Policy]:
    """The policies timed: shares of all bytes, the prompt included. `50`, `20` and `10` are windows; `20_semantic` keeps heavy
    tokens in every head, chosen at row ends; in `20_mixed` every second head is of either kind; `20_at_8` and `20_at_4` keep
    the tokens of `20` in 8 and 4 bits."""
    shape, prefix = model.shape, model.size.prefix
    stride = shape.geometry.row_length
    spec = CacheSpec(shape, prefix, dtype=str(model.dtype))
    found = {}
    for name in ("50", "20", "10", "20_semantic", "20_mixed"):
        limit = Limit.of_share(int(name.partition("_")[0]) / 100, spec)
        semantic = torch.zeros(shape.layers, shape.kv_heads)
        semantic[:, {"20_semantic": slice(None), "20_mixed": slice(0, None, 2)}.get(name, slice(0, 0))] = 1
        window, heavy = project(1 - semantic, semantic, limit, stride=stride)
        found[name] = Policy.uniform(shape, window=window, heavy=heavy, stride=stride, prefix=prefix)
    for bits in (8, 4):
        found[f"20_at_{bits}"] = found["20"].replace(bits=torch.full_like(found["20"].bits, bits))
    found["full"] = make_preset("full", Limit.of_share(1.0, spec))
    found["floor"] = Policy.uniform(shape, window=0, stride=stride, prefix=1)
    return found


class _Run:
    """One variant: a cache that is filled, and its step."""

    def __init__(self, model: RandomDecoder, name: str, batch: int) -> None:
        self.model, self.name, self.batch = model, name, batch
        self.prefix = 1 if name == "floor" else model.size.prefix
        self.policy = policies(model).get(name)
        tokens = self.prefix + model.shape.geometry.tokens
        self.step: LlamaStep | None = None
        self.cache: Cache
        if self.policy is not None:
            self.cache = CompressedCache(self.policy)
            self.step = step_for(model)  # type: ignore[arg-type]  # a decoder without embeddings and codes
        elif name == "static":
            self.cache = StaticCache(config=model.decoder.config, max_cache_len=tokens)  # type: ignore[arg-type]
        else:
            self.cache = DynamicCache(config=model.decoder.config)  # type: ignore[arg-type]
        self.seen = 0

    @property
    def decoder(self) -> str:
        """The name of what takes the step."""
        return TransformersDecoder.name if self.step is None else LlamaCpuDecoder.name

    def take(self, embeds: torch.Tensor) -> None:
        """Embeddings [B, T, C] of the prefix or of a row."""
        if self.policy is None:
            self.model.forward(embeds, None, self.cache)
        else:
            with compressed(self.model, self.policy):  # type: ignore[arg-type]
                self.model.forward(embeds, None, self.cache)
        self.seen += embeds.shape[1]

    def fill(self, states: Sequence[torch.Tensor]) -> None:
        """Query [B, Hq, T, D], keys and values [B, H, T, D] of a row, the same in every layer, without the model."""
        query, keys, values = states
        for number in range(self.model.shape.layers):
            self.cache.update(keys, values, number)
            if isinstance(self.cache, CompressedCache):
                self.cache.compressed_layers[number].attend(self.model.decoder, query, None, self.model.size.head_dim**-0.5)
        self.seen += keys.shape[2]

    def one(self, embeds: torch.Tensor) -> None:
        """Embedding [B, C] of the next token."""
        if self.step is not None:
            assert isinstance(self.cache, CompressedCache)
            self.step(embeds, self.seen, self.cache)
            self.seen += 1
        else:
            self.take(embeds[:, None])

    def nbytes(self) -> int:
        """Bytes of the cache's tensors."""
        if isinstance(self.cache, CompressedCache):
            return self.cache.nbytes()
        layers: list[Any] = list(self.cache.layers)
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def extra_bytes(self) -> int:
        """What a step allocates beside weights and cache, at its peak."""
        device = self.model.device
        embeds = torch.zeros(self.batch, self.model.width, dtype=self.model.dtype, device=device)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes between the lines of the progress display
        with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.again(embeds)  # what it frees was allocated before, and is not seen
            with record_function(_MARK):
                self.again(embeds)
        events = sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        begin = next(event.start_ns() for event in events if event.name() == _MARK)
        live = peak = 0
        for event in events:
            if event.name() == "[memory]" and event.start_ns() >= begin:
                live += event.nbytes()
                peak = max(peak, live)
        return peak

    def again(self, embeds: torch.Tensor) -> None:
        """The last step once more; what it does to the cache does not matter any more."""
        if isinstance(self.cache, CompressedCache):
            for layer in self.cache.compressed_layers:
                layer.seen -= 1
                for bucket in layer.buckets:
                    if isinstance(bucket, HeavyHeads):
                        bucket.flush_scores()
                        bucket.live -= 1
        else:
            for plain in self.cache.layers:
                if hasattr(plain, "cumulative_length"):  # of a static cache, which has no room for one token more
                    plain.cumulative_length -= 1
        self.seen -= 1
        self.one(embeds)


def _time(
    model: RandomDecoder, runs: Sequence[_Run], rows: int, tell: Callable[[int, int], object]
) -> dict[str, dict[int, list[float]]]:
    """Seconds of the steps of the timed rows, by variant and row; variants take turns token by token."""
    geometry = model.shape.geometry
    length = geometry.row_length
    last = geometry.rows - 1
    timed = sorted({int((part + 0.5) * geometry.rows / rows) for part in range(rows)} | {last})
    generator = torch.Generator().manual_seed(0)
    batch = runs[0].batch

    def some(count: int) -> torch.Tensor:
        return torch.randn(batch, count, model.width, generator=generator).to(model.device, model.dtype)

    seconds: dict[str, dict[int, list[float]]] = {run.name: {row: [] for row in timed} for run in runs}
    with torch.inference_mode():
        prefix = some(model.size.prefix)
        for run in runs:
            run.take(prefix[:, : run.prefix])
        for row in range(geometry.rows):
            if row not in timed:
                shape = (batch, model.size.heads + 2 * model.size.kv_heads, length, model.size.head_dim)
                states = torch.randn(shape, generator=generator).to(model.device, model.dtype)
                for run in runs:
                    run.fill(states.split([model.size.heads, model.size.kv_heads, model.size.kv_heads], 1))
                tell(row + 1, geometry.rows)
                continue
            embeds = some(length)
            for t in range(length):
                for run in runs:
                    if row == last and t == length - 1:
                        continue  # nothing looks at the last token of an image
                    began = _clock(model.device)
                    run.one(embeds[:, t])
                    seconds[run.name][row].append(_clock(model.device) - began)
            tell(row + 1, geometry.rows)
    return seconds


def bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes a second that this machine reads from memory, with the threads in use."""
    x = torch.ones(megabytes * 2**18, device=device)
    best = float("inf")
    for _ in range(5):
        began = _clock(x.device)
        torch.dot(x, x)  # reads one array; the second argument is the same
        best = min(best, _clock(x.device) - began)
    return x.numel() * 4 / best


def break_even(curves: Sequence[Row], variant: str = "20") -> list[Row]:
    """From which row of the image on a share is faster than the full cache in the same runtime.

    Args:
        curves: the second table of `bench_decode`.
        variant: the share.

    Returns:
        By dtype and batch: dtype, batch, row (None: never), gain (ms of the full cache over ms of the share, in the last row).
    """
    times: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    for one in curves:
        times.setdefault((one["dtype"], one["batch"]), {}).setdefault(one["variant"], {})[one["row"]] = one["ms"]
    found = []
    for (dtype, batch), by_variant in times.items():
        ours, full = by_variant[variant], by_variant["full"]
        slower = [row for row in full if ours[row] >= full[row]]
        faster = [row for row in full if row > max(slower, default=-1)]
        gain = full[max(full)] / ours[max(full)]
        found.append({"dtype": dtype, "batch": batch, "row": min(faster, default=None), "gain": gain})
    return found


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
