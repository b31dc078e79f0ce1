"""What cheaper sensitivity tables are worth: the solver's answer from each kind of table, on unseen images.

    python reports/stickers/tables.py RUN -o reports/stickers/tables.csv

writes tables.csv. A row a limit and kind: budget, table (of every head, of the heads of a class in a layer together, or
from the coverage of the trace), cells, seconds (0 where the table was there), stride (a row, or the longest that fits),
replay_kl on unseen images (nats a token) and its 95 % interval (kl_low, kl_high).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from bench_setup import Folder, Keep, Out, Run, Setup, TableImages, Unseen, shares, show, shown, start, write_table

from headscope.intervals import mean_interval
from headscope.pipeline import groups_of, open_run
from headscope.tuning import SearchConfig, fitting_strides, sensitivity_table, solve

KINDS = ("heads", "groups", "coverage")
BUCKETS = 3


def main(
    run: Run,
    out: Out = Path("tables.csv"),
    keep: Keep = "50,30,20,15,10%",
    table_images: TableImages = 8,
    folder: Folder = None,
) -> None:
    """The solver by a table of every head, of groups, of the trace alone."""
    setup, rows = Setup.open(run, folder), []
    row_length, unseen = setup.model.shape.geometry.stride_row, Unseen(setup)
    opened = open_run(run)
    groups = groups_of(opened.under(opened.config.limit, SearchConfig(table="groups")))
    path = setup.out / "sensitivity.parquet"
    replay = setup.few(table_images)
    tables = {kind: sensitivity_table(replay, kind, groups, path, shown(f"table of {kind}")) for kind in KINDS}
    for share in shares(keep):
        limit = setup.limit(share)
        stride = max(every for every in fitting_strides(limit) if every <= row_length)
        for kind, table in tables.items():
            policy = solve(setup.losses(table.losses), limit, stride, BUCKETS)
            found = unseen.measure(policy)
            low, high = mean_interval(np.array(found["by_image"]))
            row = {"budget": share, "table": kind, "cells": table.cells, "seconds": round(table.seconds, 1)}
            rows.append({**row, "stride": stride, "replay_kl": found["kl"], "kl_low": low, "kl_high": high})
    write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows))
    print(f"table: {out}")


if __name__ == "__main__":
    start(main)
