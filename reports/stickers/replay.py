"""How many policies a minute replay measures, and where the time goes.

    python reports/stickers/replay.py RUN -o reports/stickers/replay.csv

writes replay.csv. A row a kind of policy: policy, images (images replayed), seconds a policy (the least of three),
policies_minute, and the share of the wall clock by what the operations are for. Window heads need one pass, heavy heads a pass
a stride: a row, half a row, a token.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from bench_setup import Out, Run, byte_limit, one_thread, show, start, write_table
from torch.profiler import ProfilerActivity, profile

from headscope.models import Samples
from headscope.pipeline import open_run
from headscope.policy import Policy, make_preset, parse_share
from headscope.tuning import Replay

REPEATS = 3
# Operations by what they are for; the rest of the wall clock is small operations and Python.
PARTS = {
    "linear layers": ("aten::mm", "aten::addmm", "aten::linear"),
    "attention": ("aten::bmm", "aten::_scaled_dot_product", "aten::_softmax", "aten::baddbmm"),
    "choosing": ("aten::sort", "aten::gather", "aten::index_select", "aten::scatter", "aten::index_copy", "aten::argmin"),
    "comparing": ("aten::_log_softmax", "aten::exp", "aten::argmax", "aten::lerp"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::masked_fill"),
}


def main(
    run: Run,
    out: Out = Path("replay.csv"),
    images: Annotated[int, typer.Option(min=1, help="Of the calibration images.")] = 8,
    keep: Annotated[str, typer.Option(help="Share of the plain cache that the policies keep: 20% or 0.2.")] = "20%",
) -> None:
    """Policies a minute that replay measures."""
    one_thread()
    opened = open_run(run)
    model, samples = opened.model, Samples.load(opened.folder.samples)
    replay = Replay(model, samples.first(images), by_stream=False)
    limit, row = byte_limit(model, parse_share(keep), replay.prefix, replay.streams), model.shape.geometry.stride_row
    even = make_preset("h2o", limit)
    policies = {"window only": make_preset("streaming", limit)}
    policies |= {f"half heavy, stride {stride}": even.replace(stride=stride) for stride in dict.fromkeys((row, row // 2, 1))}
    table = pd.DataFrame([measured(replay, name, policy) for name, policy in policies.items()])
    write_table(table, out, "%.4g")
    show(table)
    print(f"table: {out}")


def measured(replay: Replay, name: str, policy: Policy) -> dict[str, object]:
    """The row of one policy."""
    seconds = min(replay.measure(policy).seconds for _ in range(REPEATS))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        replay.measure(policy)
        wall = time.perf_counter() - began
    own = {event.key: event.self_cpu_time_total * 1e-6 for event in found.key_averages()}
    parts = {part: sum(own[key] for key in own if key.startswith(names)) / wall for part, names in PARTS.items()}
    row = {"policy": name, "images": len(replay), "seconds": seconds, "policies_minute": 60 / seconds, **parts}
    return {**row, "small operations and Python": 1 - sum(parts.values())}


if __name__ == "__main__":
    start(main)
