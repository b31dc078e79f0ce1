"""What more kinds of heads in a layer gain, and what they cost: the solver's answer with at most so many.

    python reports/stickers/buckets.py RUN --keep 50,20,10% -o reports/stickers/buckets.csv

writes buckets.csv. A row a limit and number: budget, stride (the shortest that fits), buckets (most distinct settings a layer),
used (their mean), replay_kl on unseen images (nats a token) and its 95 % interval (kl_low, kl_high), ms_per_step (a decoding
step of four images with the cache full, in turns with the others of the limit).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from bench_setup import Folder, Keep, Out, Run, Setup, TableImages, Unseen, shares, show, start, write_table

from headscope.intervals import mean_interval
from headscope.tuning import fitting_strides, solve, step_times

COUNTS = (1, 2, 3, 4, 6)
TIMED_IMAGES = 4


def main(
    run: Run, out: Out = Path("buckets.csv"), keep: Keep = "20%", table_images: TableImages = 8, folder: Folder = None
) -> None:
    """Loss and time of a step by kinds of heads in a layer."""
    setup, rows = Setup.open(run, folder), []
    shape, unseen = setup.model.shape, Unseen(setup)
    losses = setup.losses(setup.sensitivity(table_images))
    for share in shares(keep):
        limit = setup.limit(share)
        stride = fitting_strides(limit)[0]
        solved = {str(count): solve(losses, limit, stride, count) for count in COUNTS}
        times = step_times(unseen.replay, solved, TIMED_IMAGES)
        for count in COUNTS:
            policy = solved[str(count)]
            found = unseen.measure(policy)
            used = sum(len(policy.buckets(layer)) for layer in range(shape.layers)) / shape.layers
            low, high = mean_interval(np.array(found["by_image"]))
            row = {"budget": share, "stride": stride, "buckets": count, "used": used, "replay_kl": found["kl"]}
            rows.append({**row, "kl_low": low, "kl_high": high, "ms_per_step": 1e3 * times[str(count)]})
    write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows))
    print(f"table: {out}")


if __name__ == "__main__":
    start(main)
