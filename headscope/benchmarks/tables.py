"""What cheaper sensitivity tables are worth: the solver's answer from each kind of table, on unseen pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from headscope.benchmarks.searching import Ground, Progress, Unseen
from headscope.tuning import Replay
from headscope.tuning.compare import bootstrap
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.options import losses_from
from headscope.tuning.measure.table import COVERAGE, GROUPS, HEADS, sensitivity_table
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.spaces import fitting_strides


def bench_tables(
    ground: Ground,
    groups: Groups,
    keeps: Sequence[str],
    *,
    table_pictures: int = 8,
    buckets: int = 3,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One row a budget and kind of table: budget, table, cells, seconds (0 where the table was there), stride (a row, or the
    longest that fits), replay_kl on unseen pictures and its 95 % interval over them (kl_low, kl_high)."""
    shape, unseen = ground.model.shape, Unseen(ground)
    few = ground.calibration.select(range(min(table_pictures, len(ground.calibration))))
    tables = {}
    for kind in (HEADS, GROUPS, COVERAGE):

        def tell(done: int, total: int, kind: str = kind) -> None:
            if progress is not None:
                progress(f"table of {kind}", done, total, float("nan"))

        replay = Replay(ground.model, few, by_stream=False)
        tables[kind] = sensitivity_table(replay, kind, groups, ground.out / "sensitivity.parquet", tell)
    rows = []
    for keep in keeps:
        limit = ground.limit(keep)
        stride = max(every for every in fitting_strides(shape, limit, ground.prefix) if every <= shape.geometry.span)
        for kind, table in tables.items():
            losses = losses_from(table.losses, shape.layers, shape.kv_heads, shape.geometry)
            found = unseen.measure(solve(losses, shape, limit, ground.prefix, stride, buckets))
            low, high = bootstrap(np.array(found["by_picture"]), 0)
            row = {"budget": float(keep.removesuffix("%")) / 100, "table": kind, "cells": table.cells}
            row |= {"seconds": round(table.seconds, 1), "stride": stride, "replay_kl": found["kl"]}
            rows.append({**row, "kl_low": low, "kl_high": high})
    return pd.DataFrame(rows)
