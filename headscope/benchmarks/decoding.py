"""What a decoding step costs: transformers' caches, ours at several sizes, and no past at all, taking turns in one run.

The step is the decoder's: embedding in, hidden state out. Of rows that are not timed only keys, values and queries are made
up and taken in, so that a few rows stand for the whole image; the last row is timed always.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Cache, DynamicCache, StaticCache

from headscope.benchmarks.shapes import RandomDecoder
from headscope.policy.footprint import Limit, project
from headscope.policy.policy import Policy
from headscope.policy.presets import make_preset
from headscope.runtime.buckets import HeavyHeads
from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.decoders.llama_cpu import LlamaStep, step_for

COLUMNS = ["dtype", "batch", "variant", "ms_step", "ms_last_row", "tokens_s", "cache_bytes", "peak_mb", "limit_share"]
VARIANTS = ("dynamic", "static", "full", "50", "20", "10", "20_semantic", "20_mixed", "floor")
_MARK = "headscope: a decoding step"
# Told after each unit of work: (what is being done, units done, units in all, nan).
Progress = Callable[[str, int, int, float], None]


def bench_decode(
    shape: str = "laptop",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    batches: Sequence[int] = (16, 64),
    *,
    rows: int = 4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a dtype, batch and variant, and the times of every timed row of the picture.

    Variants: transformers' `dynamic` and `static` caches in its own forward; `full` and shares kept in ours, see `policies`;
    `floor` has no past at all.

    Args:
        rows: timed rows of the picture before its last, in equal parts of it.

    Returns:
        COLUMNS, then ms_median and ms_least of the last row, of which ms_last_row is the mean. ms_step: over the image.
        limit_share: the time that weights and live cache need at the measured bandwidth, over the time of the last row.
        The second: dtype, batch, variant, row, ms (mean), ms_least.
    """
    found, curves = [], []
    speed = bandwidth(device)
    for dtype in dtypes:
        model = RandomDecoder(shape, getattr(torch, dtype), device)
        for batch in batches:
            what = f"{dtype}, batch {batch}"
            runs = [_Run(model, name, batch) for name in VARIANTS]

            def tell(done: int, total: int, what: str = what) -> None:
                if progress is not None:
                    progress(what, done, total, float("nan"))

            timed = _time(model, runs, rows, tell)
            for run in runs:
                by_row = timed[run.name]
                last = by_row[max(by_row)]
                image = sum(sum(times) / len(times) for row, times in by_row.items() if row != max(by_row)) / (len(by_row) - 1)
                limit = (model.weight_bytes() + run.nbytes()) / speed
                mean = sum(last) / len(last)
                found.append(
                    {
                        "dtype": dtype,
                        "batch": batch,
                        "variant": run.name,
                        "ms_step": 1e3 * image,
                        "ms_last_row": 1e3 * mean,
                        "tokens_s": batch / image,
                        "cache_bytes": run.nbytes(),
                        "peak_mb": (model.weight_bytes() + run.nbytes() + run.extra_bytes()) / 1e6,
                        "limit_share": limit / mean,
                        "ms_median": 1e3 * median(last),
                        "ms_least": 1e3 * min(last),
                    }
                )
                facts = {"dtype": dtype, "batch": batch, "variant": run.name}
                curves += [
                    {**facts, "row": row, "ms": 1e3 * sum(times) / len(times), "ms_least": 1e3 * min(times)}
                    for row, times in sorted(by_row.items())
                ]
            del runs
            gc.collect()
    return pd.DataFrame(found), pd.DataFrame(curves)


def policies(model: RandomDecoder) -> dict[str, Policy]:
    """The policies timed: shares of all bytes, the prompt included. `50`, `20` and `10` are windows; `20_semantic` keeps heavy
    tokens in every head, chosen at row ends; in `20_mixed` every second head is of either kind."""
    shape, prefix = model.shape, model.size.prefix
    stride = shape.geometry.row_length
    dtype = str(model.dtype).removeprefix("torch.")
    found = {}
    for name in ("50", "20", "10", "20_semantic", "20_mixed"):
        limit = Limit.from_keep(shape, int(name.partition("_")[0]) / 100, prefix=prefix, dtype=dtype)
        semantic = torch.zeros(shape.layers, shape.kv_heads)
        semantic[:, {"20_semantic": slice(None), "20_mixed": slice(0, None, 2)}.get(name, slice(0, 0))] = 1
        window, heavy = project(1 - semantic, semantic, limit, shape, stride=stride, prefix=prefix)
        found[name] = Policy.uniform(shape, window=window, heavy=heavy, stride=stride, prefix=prefix)
    limit = Limit.from_keep(shape, 1.0, prefix=prefix, dtype=dtype)
    found["full"] = make_preset("full", shape, limit, prefix=prefix)
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
            self.step = step_for(model)  # type: ignore[arg-type]
        elif name == "static":
            self.cache = StaticCache(config=model.decoder.config, max_cache_len=tokens)  # type: ignore[arg-type]
        else:
            self.cache = DynamicCache(config=model.decoder.config)  # type: ignore[arg-type]
        self.seen = 0

    def take(self, embeds: torch.Tensor) -> None:
        """Embeddings [B, T, C] of the prefix or of a row."""
        if self.policy is None:
            self.model.decode(embeds, None, self.cache)
        else:
            with compressed(self.model, self.policy):  # type: ignore[arg-type]
                self.model.decode(embeds, None, self.cache)
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
                        bucket.settle()
                        bucket.live -= 1
        else:
            for plain in self.cache.layers:
                if hasattr(plain, "cumulative_length"):  # of a static cache, which has no room for one token more
                    plain.cumulative_length -= 1
        self.seen -= 1
        self.one(embeds)


def _time(
    model: RandomDecoder, runs: Sequence[_Run], rows: int, progress: Callable[[int, int], object]
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
                progress(row + 1, geometry.rows)
                continue
            embeds = some(length)
            for t in range(length):
                for run in runs:
                    if row == last and t == length - 1:
                        continue  # nothing looks at the last token of a picture
                    began = _clock(model.device)
                    run.one(embeds[:, t])
                    seconds[run.name][row].append(_clock(model.device) - began)
            progress(row + 1, geometry.rows)
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


def break_even(curves: pd.DataFrame, variant: str = "20") -> pd.DataFrame:
    """From which row of the picture on a share is faster than the full cache in the same runtime: dtype, batch, row (no number:
    never), gain (ms of the full cache over ms of the share, in the last row)."""
    rows = []
    for (dtype, batch), part in curves.groupby(["dtype", "batch"], sort=False):
        wide = part.pivot(index="row", columns="variant", values="ms")
        faster = wide.index[(wide[variant] < wide["full"])[::-1].cumprod()[::-1].astype(bool)]
        gain = float(wide["full"].iloc[-1] / wide[variant].iloc[-1])
        rows.append({"dtype": dtype, "batch": batch, "row": int(faster[0]) if len(faster) else None, "gain": gain})
    return pd.DataFrame(rows)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
