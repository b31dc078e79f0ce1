"""What tracing costs: one forward pass with and without it, in time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import LlamaConfig, LlamaModel

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.progress import Progress, of_task
from headscope.tracing import Selection, watching
from headscope.tracing.catalogue import chosen_curves, chosen_statistics
from headscope.tracing.hooks import Layer

VARIANTS = ("plain", "tracer", "tracer_full", "maps")
COLUMNS = ["tokens", "variant", "ms", "peak_mb"]


@dataclass(frozen=True)
class Shape:
    """A random decoder of Llama's kind: `layers` x `heads` x `head_dim`, both streams of one guided image in a batch."""

    layers: int = 8
    heads: int = 8
    head_dim: int = 64
    intermediate: int = 1376
    dtype: str = "float32"
    prefix: int = 24


def geometry_of(tokens: int, prefix: int) -> Geometry:
    """The squarest image whose tokens and the prefix are `tokens`.

    Raises:
        DataError: there are no tokens left for an image of two columns.
    """
    image = tokens - prefix
    columns = [n for n in range(2, image // 2 + 1) if image % n == 0]
    if not columns:
        raise DataError(
            f"{tokens} tokens: no image of several rows and columns has {image} cells; take {prefix} + rows x columns."
        )
    cols = min(columns, key=lambda n: (abs(n - image / n), -n))
    return Geometry(image // cols, cols)


def bench_tracing(
    tokens: Sequence[int],
    shape: Shape,
    *,
    variants: Sequence[str] = VARIANTS,
    repeats: int = 5,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Time the variants in turns in one process, and take each one's peak memory from a process of its own.

    Variants: `plain`, the forward pass; `tracer`, the same with every query, layer, head and stream traced and the default
    statistics and curves computed; `tracer_full`, with the full set; `maps`, eager attention that returns its maps.

    Args:
        tokens: prefix included, one or more.
        shape: of the decoder.
        variants: see above.
        repeats: passes of each, of which the fastest counts.
        progress: told of passes, see `headscope.progress`.

    Returns:
        tokens (prefix included), variant, ms (the least of `repeats`), peak_mb (resident memory of the whole process), and
        ms_ratio, peak_ratio and added_mb against the plain pass of the same size.
    """
    rows: list[dict[str, Any]] = []
    tell = of_task(progress, "passes", len(tokens) * (repeats + len(variants)))
    for size in tokens:
        run = _passes(size, shape)
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        for variant in variants:  # once unmeasured: first calls allocate
            run(variant)
        for turn in range(repeats):
            for variant in variants:
                started = time.perf_counter()
                run(variant)
                seconds[variant].append(time.perf_counter() - started)
            tell(len(rows) + turn, len(tokens) * (repeats + len(variants)))
        del run
        for variant in variants:
            peak = _peak_of(size, shape, variant)
            rows.append({"tokens": size, "variant": variant, "ms": 1e3 * min(seconds[variant]), "peak_mb": peak})
    table = pd.DataFrame(rows, columns=COLUMNS)
    plain = table[table["variant"] == "plain"].set_index("tokens")
    if len(plain):
        base = plain.loc[table["tokens"]]
        table["ms_ratio"] = table["ms"].to_numpy() / base["ms"].to_numpy()
        table["peak_ratio"] = table["peak_mb"].to_numpy() / base["peak_mb"].to_numpy()
        table["added_mb"] = table["peak_mb"].to_numpy() - base["peak_mb"].to_numpy()
    return table


def _passes(tokens: int, shape: Shape) -> Callable[[str], None]:
    """A function that makes one pass of a variant."""
    geometry = geometry_of(tokens, shape.prefix)
    torch.manual_seed(0)
    hidden = shape.heads * shape.head_dim
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=tokens,
        dtype=shape.dtype,
    )
    with torch.device("cpu"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, shape.dtype))
        try:
            decoder = LlamaModel(config).eval()
        finally:
            torch.set_default_dtype(before)
    embeds = torch.randn(2, tokens - 1, hidden).to(decoder.dtype)
    mask = torch.ones(2, tokens - 1, dtype=torch.long)

    @torch.inference_mode()
    def run(variant: str) -> None:
        maps = variant == "maps"
        decoder.config._attn_implementation = "eager" if maps else "sdpa"
        if variant in ("plain", "maps"):
            decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False, output_attentions=maps)
            return
        full = variant == "tracer_full"

        def each(number: int, layer: Layer) -> None:
            for one in (*chosen_statistics(full).values(), *chosen_curves(full).values()):
                one(layer.whole)

        with watching(decoder, geometry, shape.prefix, Selection(full=full), each=each, once=True):
            decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)

    return run


def _peak_of(tokens: int, shape: Shape, variant: str) -> float:
    """MB that a fresh process needs at most for two passes."""
    job = json.dumps({"tokens": tokens, "shape": asdict(shape), "variant": variant, "threads": torch.get_num_threads()})
    done = subprocess.run([sys.executable, "-m", __name__, job], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["killed, perhaps for want of memory"])[-1]
        raise DataError(f"variant {variant} at {tokens} tokens did not finish ({reason}); fewer tokens need less memory.")
    return float(done.stdout)


def _peak_bytes() -> int:
    """Peak resident memory of this process; `ru_maxrss` would count that of the process which started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    one_pass = _passes(given["tokens"], Shape(**given["shape"]))
    for _ in range(2):
        one_pass(given["variant"])
    print(_peak_bytes() / 1e6)
