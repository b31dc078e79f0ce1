"""Optuna's samplers at equal trials: the least loss so far, from the solver's answer and from the presets alone.

    python reports/stickers/samplers.py RUN --keep 20% --seeds 5 --trials 60 -o reports/stickers/samplers.csv

writes samplers.csv and its figure samplers.png.

A row a start, sampler, seed and proposal: budget, method ("searched" begins with the solver's answer, "optuna" has no
sensitivity table), sampler, seed, prune (whether what is worse is given up; of such trials only TPE learns), trial, best_kl
(least loss on the calibration images so far, nats a token), seconds (of measuring so far). All begin with the same presets,
which are trial 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from bench_setup import (
    OPTUNA,
    SEARCHED,
    Folder,
    Out,
    Run,
    Seeds,
    Setup,
    TableImages,
    Trials,
    show,
    start,
    write_table,
)

from headscope.policy import parse_share
from headscope.reporting import save_figure, trials_figure
from headscope.tuning import SAMPLERS, SearchResult


def main(
    run: Run,
    out: Out = Path("samplers.csv"),
    keep: Annotated[str, typer.Option(help="Share of the plain cache: 20% or 0.2.")] = "20%",
    seeds: Seeds = 5,
    trials: Trials = 60,
    sampler: Annotated[list[str] | None, typer.Option(help="One of the samplers; may be given again (default: all).")] = None,
    table_images: TableImages = 8,
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Give up what is worse; only tpe learns of that.")] = True,
    folder: Folder = None,
) -> None:
    """Samplers at equal trials: least loss so far."""
    if unknown := [name for name in sampler or () if name not in SAMPLERS]:
        raise typer.BadParameter(f"sampler {unknown[0]}: expected one of {', '.join(SAMPLERS)}.")
    setup, share, rows = Setup.open(run, folder), parse_share(keep), []
    table, replay = setup.sensitivity(table_images), setup.study()
    sweep = setup.sweep(share, replay)
    for seed, method, name in product(range(seeds), (SEARCHED, OPTUNA), sampler or SAMPLERS):
        study = f"{method}-{name}-{seed}{'' if prune else '-whole'}"
        begin = table if method == SEARCHED else None
        options = {"trials": trials, "seed": seed, "sampler": name, "prune": prune, "patience": 0}
        result = setup.search(share, replay, sweep, begin, study, **options)
        rows += best_so_far(result, {"budget": share, "method": method, "sampler": name, "seed": seed, "prune": prune})
    curves = pd.DataFrame(rows)
    write_table(curves, out)
    last = curves[curves["trial"] == curves.groupby(["method", "sampler", "seed"])["trial"].transform("max")]
    means = last.groupby(["method", "sampler"])[["best_kl", "seconds"]].agg(["mean", "min", "max"])
    show(means.set_axis([" ".join(column) for column in means.columns], axis=1).reset_index())
    print(f"table: {out}, figure: {save_figure(trials_figure(curves), out.with_suffix('.png'))}")


def best_so_far(result: SearchResult, names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a proposal, the incumbents being proposal 0."""
    trials = result.trials
    own = trials["label"].isin(result.incumbents) | trials["label"].eq("")
    least, seconds = min(result.incumbents.values()), 0.0
    rows = [{**names, "trial": 0, "best_kl": least, "seconds": 0.0}]
    for number, row in enumerate(trials[~own & (trials["label"].fillna("").str.endswith("trial"))].itertuples(), 1):
        seconds += float(row.seconds or 0.0)
        if row.state == "complete":
            least = min(least, float(row.kl))
        rows.append({**names, "trial": number, "best_kl": least, "seconds": round(seconds, 2)})
    return rows


if __name__ == "__main__":
    start(main)
