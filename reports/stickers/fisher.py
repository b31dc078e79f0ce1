"""How far the table by gradients can be trusted: its cells beside exact single-head replays.

    python reports/stickers/fisher.py RUN -o reports/stickers/fisher.csv

writes fisher.csv, a row a cell: layer, kv_head, window, heavy, decay, exact and estimate (nats a token, on the same calibration
images). Printed beside it: Spearman's correlation, the median ratio by size of the loss, and the seconds of both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from bench_setup import Out, Run, Setup, shown, start, write_table

from headscope.intervals import rank_correlation
from headscope.tuning import ANCHOR, default_options, fisher_table, measure_sensitivity, table_stride


def main(
    run: Run,
    out: Out = Path("fisher.csv"),
    images: Annotated[int, typer.Option(min=1, help="Calibration images of both tables.")] = 2,
    samples: Annotated[int, typer.Option(min=1, help="Gradients an image.")] = 4,
) -> None:
    """Exact and estimated losses of every head at every option."""
    setup = Setup.open(run, None)
    replay = setup.few(images)
    options = default_options(setup.model.shape.geometry)
    began = time.monotonic()
    exact = measure_sensitivity(replay, options, anchor=ANCHOR, negligible=0.0, progress=shown("exact"))
    seconds = time.monotonic() - began
    stride = table_stride(setup.model.shape.geometry)
    estimate = fisher_table(replay, options, stride, anchor=ANCHOR, samples=samples, progress=shown("gradients"))
    keys = ["layer", "kv_head", "window", "heavy", "decay"]
    both = exact.merge(estimate, on=keys, suffixes=("_exact", "_estimate")).rename(
        columns={"loss_exact": "exact", "loss_estimate": "estimate"}
    )[[*keys, "exact", "estimate"]]
    write_table(both, out)
    felt = both[both["exact"] > 1e-6]
    correlation, low, high = rank_correlation(felt["exact"], felt["estimate"])
    print(f"{len(felt)} of {len(both)} cells lose something: rank correlation {correlation:.3f} ({low:.3f} to {high:.3f})")
    for edge, part in felt.groupby(pd.cut(np.log10(felt["exact"]), [-6, -5, -4, -3, -2, 1]), observed=True):
        ratio = (part["estimate"] / part["exact"]).median()
        print(f"exact 1e{edge.left:g} to 1e{edge.right:g}: {len(part)} cells, ratio {ratio:.2f}")
    print(f"seconds: exact {seconds:.0f}, gradients {estimate.attrs['seconds']:.0f}; table: {out}")


if __name__ == "__main__":
    start(main)
