"""Every preset, the solver, Optuna and both together, over limits and seeds, on images that no search saw.

    python reports/stickers/search.py RUN --seeds 5 --trials 60 -o reports/stickers/search.csv

writes search.csv and its figure search.png, and the policies beside the studies (bench/keep-20/searched-0.safetensors in RUN).

A row a limit, method and seed: budget (share of the plain cache), method, seed, replay_kl (nats a token, unseen images),
cache_bytes, trials (policies measured, given up ones too), seconds (of measuring them; for the solver and the search with the
sensitivity table), calibration_kl, top1, the 95 % interval of replay_kl over images (kl_low, kl_high), the paired difference to
the searched policy of seed 0 (difference, difference_low, difference_high; positive where this method loses more), and what the
policy is (variant). Presets depend on no seed and have one row.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from bench_setup import (
    OPTUNA,
    SEARCHED,
    SOLVER,
    Folder,
    Keep,
    Out,
    Run,
    Seeds,
    Setup,
    TableImages,
    Trials,
    Unseen,
    shares,
    show,
    start,
    write_table,
)

from headscope.intervals import mean_interval
from headscope.policy import Policy, make_preset, save_policy
from headscope.reporting import budgets_figure, save_figure
from headscope.storage import write_whole
from headscope.tuning import SearchResult, Sweep

SHOWN = ["budget", "method", "seed", "replay_kl", "cache_bytes", "trials", "seconds"]


class Entry(NamedTuple):
    """A policy that a method found, its loss on the calibration images, and what finding it cost."""

    method: str
    seed: int
    policy: Policy
    kl: float
    trials: int
    seconds: float


def main(
    run: Run,
    out: Out = Path("search.csv"),
    keep: Keep = "50,30,20,15,10%",
    seeds: Seeds = 5,
    trials: Trials = 60,
    table_images: TableImages = 8,
    folder: Folder = None,
) -> None:
    """Every preset, the solver, Optuna and both, on unseen images."""
    setup, rows = Setup.open(run, folder), []
    wanted = [(share, setup.limit(share)) for share in shares(keep)]  # each is checked before the first is searched
    unseen, table = Unseen(setup), setup.sensitivity(table_images)
    for share, _ in wanted:
        rows += compared(share, entries(setup, share, table, seeds, trials), unseen)
        write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows)[[*SHOWN, "difference", "difference_low", "difference_high"]])
    figure = save_figure(budgets_figure(pd.DataFrame(rows)), out.with_suffix(".png"))
    print(f"table: {out}, figure: {figure}")


def entries(setup: Setup, share: float, table: pd.DataFrame, seeds: int, trials: int) -> list[Entry]:
    """What every method finds under one limit."""
    replay, place = setup.study(), setup.folder(share)
    sweep = setup.sweep(share, replay)
    full = Entry("full", 0, make_preset("full", setup.limit(1.0)), 0.0, 1, 0.0)
    found = [full, *(preset_entry(sweep, name) for name in sweep.best)]
    for seed in range(seeds):
        for method in (SEARCHED, OPTUNA):
            begin = table if method == SEARCHED else None
            result = setup.search(share, replay, sweep, begin, f"{method}-{seed}", trials=trials, seed=seed)
            save_policy(result.policy, place / f"{method}-{seed}.safetensors")
            write_whole(place / f"{method}-{seed}.parquet", partial(result.trials.to_parquet, index=False))
            extra = float(table.attrs["seconds"]) if method == SEARCHED else 0.0
            found.append(Entry(method, seed, result.policy, result.kl, *cost(result, extra)))
            if seed == 0 and method == SEARCHED and result.solver is not None:
                solved = result.solver
                found.append(Entry(SOLVER, 0, solved.policy, solved.kl, *cost(result, extra, "solver")))
    return found


def preset_entry(sweep: Sweep, name: str) -> Entry:
    """The best variant of a preset; its trials are the variants tried."""
    mine = sweep.table[(sweep.table["method"] == name) & sweep.table["fits"]]
    return Entry(name, 0, sweep.best[name], float(mine["kl"].min()), len(mine), float(mine["seconds"].sum()))


def cost(result: SearchResult, extra: float, label: str = "") -> tuple[int, float]:
    """Policies measured and seconds, of a whole search or of what its labels begin with."""
    rows = result.trials[result.trials["fingerprint"] != ""]
    rows = rows[rows["label"].str.startswith(label)].drop_duplicates("fingerprint")
    return len(rows), extra + float(rows["seconds"].sum())


def compared(share: float, found: list[Entry], unseen: Unseen) -> list[dict[str, Any]]:
    """A row a policy, measured on the unseen images and paired with the first searched one."""
    first = np.array(unseen.measure(next(entry.policy for entry in found if entry.method == SEARCHED))["by_image"])
    rows = []
    for entry in found:
        result = unseen.measure(entry.policy)
        apart = np.array(result["by_image"]) - first
        (low, high), (least, most) = mean_interval(np.array(result["by_image"])), mean_interval(apart)
        row = {"budget": share, "method": entry.method, "seed": entry.seed, "replay_kl": result["kl"]}
        row |= {"cache_bytes": result["cache_bytes"], "trials": entry.trials, "seconds": round(entry.seconds, 1)}
        row |= {"calibration_kl": entry.kl, "top1": result["top1"], "kl_low": low, "kl_high": high}
        row |= {"difference": float(apart.mean()), "difference_low": least, "difference_high": most}
        origin = entry.policy.provenance
        rows.append({**row, "variant": str(origin.get("variant", origin.get("origin", "")))})
    return rows


if __name__ == "__main__":
    start(main)
