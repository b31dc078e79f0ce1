"""What a cell of the sensitivity table costs on a large model: by gradients, and alone by an exact replay.

    OMP_NUM_THREADS=1 python reports/stickers/fisher_time.py -o reports/stickers/fisher_time.csv

Janus-Pro-1B's shape with random weights, cut to some layers, one image (two streams), float32 on a CPU. Seconds of the parts
are measured at one option and put together for all: gradients are taken once, a replay once an option, and an exact cell is the
option's share of a replay and one pass from its layer on. Writes a row: shape, layers, heads (in all), options, gradients_s,
replay_s (an option), cell_s (by gradients), exact_cell_s (mean over the layers), ratio, table_minutes_an_image; and the same
reckoned for Janus-Pro-1B's 24 layers and for Janus-Pro-7B's 30 layers of 32 heads, whose layers are four times the work.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
import typer

import headscope
from headscope.benchmarks import SIZES, random_janus
from headscope.storage import write_csv
from headscope.tuning import HeadOutputs, Option, SingleHeadLoss, default_options, head_products, sampled_gradients

SHAPE, SAMPLES = "janus-pro-1b", 4  # gradients an image, as a table has them


class Parts(NamedTuple):
    """Seconds of what a table is made of, one image."""

    layers: int
    heads: int
    options: int
    gradients: float
    replay: float
    exact: float

    def scaled(self, layers: int, heads: int, width: float) -> Parts:
        """For other layers and heads, a layer being `width` times the work; an exact cell runs half of the layers."""
        passes, halves = width * layers / self.layers, width * (layers + 1) / (self.layers + 1)
        return Parts(layers, heads, self.options, self.gradients * passes, self.replay * passes, self.exact * halves)

    def row(self, name: str) -> dict[str, Any]:
        """A line of the table."""
        heads = self.layers * self.heads
        seconds = self.gradients + self.options * self.replay
        cell, exact = seconds / (heads * self.options), self.exact + self.replay / heads
        shape = {"shape": name, "layers": self.layers, "heads": heads, "options": self.options}
        parts = {"gradients_s": self.gradients, "replay_s": self.replay, "cell_s": cell, "exact_cell_s": exact}
        return shape | parts | {"ratio": exact / cell, "table_minutes_an_image": seconds / 60}


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("fisher_time.csv"),
    layers: Annotated[int, typer.Option(min=2, help="Of the shape's 24.")] = 4,
) -> None:
    """Time the parts, and put them together."""
    torch.set_num_threads(1)
    size = SIZES["cut"] = replace(SIZES[SHAPE], layers=layers)
    model = random_janus("cut", torch.float32, "cpu")
    geometry = model.shape.geometry
    tokens = torch.randint(0, model.vocabulary, (1, geometry.tokens), generator=torch.Generator().manual_seed(0))
    numbers = {"guidance": 5.0, "temperature": 1.0, "top_k": None, "model": "cut", "weights": model.shape.weights}
    samples = headscope.Samples(["an image"], ["an image"], torch.zeros(1, dtype=torch.int64), tokens.int(), **numbers)
    replay = headscope.Replay(model, samples, by_stream=False)
    row, stride = geometry.stride_row, geometry.stride_row // 4
    outputs, option = HeadOutputs(replay, stride), Option(row + 2, 2 * row, 0.85, 8)

    began = time.perf_counter()
    gradients = sampled_gradients(replay, 0, SAMPLES, 0)
    taken = time.perf_counter() - began
    with torch.inference_mode():
        full = outputs.full(0)
        outputs.inputs(0)
        began = time.perf_counter()
        head_products(replay, gradients, outputs.under(0, option), full)
        replayed = time.perf_counter() - began
    alone = SingleHeadLoss(replay, stride)
    alone.loss(0, 0, option)  # the shortcut is tried
    alone.loss(0, 1, option)  # the option's replay, which its cells share
    seconds = []
    for layer in range(layers):
        began = time.perf_counter()
        alone.loss(layer, 2, option)
        seconds.append(time.perf_counter() - began)
    options = len(default_options(geometry, (16, 8, 4)))
    whole = Parts(layers, size.heads, options, taken, replayed, sum(seconds) / layers)
    large = {f"{SHAPE}, {layers} layers": whole, SHAPE: whole.scaled(24, 16, 1.0), "janus-pro-7b": whole.scaled(30, 32, 4.0)}
    rows = [parts.row(name) for name, parts in large.items()]
    write_csv(pd.DataFrame(rows), out, float_format="%.4g")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
