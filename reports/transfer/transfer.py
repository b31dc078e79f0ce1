"""What a transferred policy is worth: its loss beside that of the best preset and of the target's own search.

    python reports/transfer/transfer.py RUN RUN ... --keep 20,10,50,30,15% -o reports/transfer/transfer.csv

writes transfer.csv and its figure transfer.png, of the first pair. Each RUN is a run folder with trace and heads. `--pair
stickers:stickers-scenes` (or `stickers+stickers-classes:stickers-scenes`, learnt from both) names what is measured; by default
each model to each other.

A row a pair, limit and kind: source, target, kind (by trace, by map, by depth), keep, replay_kl (nats a token, on unseen images
of the target) with its 95 % interval (kl_low, kl_high), best_preset and preset_kl, own_kl (of the target's own search, with its
table, presets and trials), share (of the way from the preset to the own search), options (how many of the table's
options its solver needs to lose no more, at 20 %; empty where all do not reach it), cells (of such a table) and seconds (of
the transfer itself). A map's score is the share of attention outside the neighbourhood, as the published maps show it. Goes on
after a stop.
"""

from __future__ import annotations

import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stickers"))
from bench_setup import Folder, Keep, Out, Setup, TableImages, Trials, Unseen, shares, show, shown, start, write_table

from headscope.errors import BudgetError
from headscope.geometry import Geometry
from headscope.intervals import mean_interval
from headscope.policy import CONTROLS, Policy, Rule, load_policy, save_policy
from headscope.reporting import budgets_figure, save_figure
from headscope.run_folder import RunFolder
from headscope.tracing import TraceDataset
from headscope.tuning import (
    BY_DEPTH,
    BY_MAP,
    BY_TRACE,
    PhasedStudy,
    SearchConfig,
    Seen,
    Source,
    StudyStore,
    Target,
    carry_over,
    fitting_strides,
    load_table,
    rule_of,
    solve,
    sweep_presets,
)

BITS = (16, 8, 4)
# Presets that were the best of all at some limit of a bundled model, and the calibration images that they are swept on.
PRESETS, SWEPT = ("streaming", "h2o", "ssd"), 4
# Options of smaller tables of the target's own, at which its solver is asked how many a transfer saves, at one limit.
COUNTS, COUNTED_AT = (4, 8, 16, 24), 0.2

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders with trace and heads.")]
Pairs = Annotated[list[str] | None, typer.Option(help="SOURCE:TARGET by names of models (default: each to each other).")]


class Model:
    """A run as source and target.

    Args:
        run: its folder.
        folder: where studies are kept, by default bench/ in the run.
        images: calibration images of table and search.
        unseen: images that policies are judged by.
    """

    def __init__(self, run: Path, folder: Path | None, images: int, unseen: int) -> None:
        opened = Setup.open(run, None if folder is None else folder / run.name)
        few = opened.unseen.first(unseen)
        self.setup = Setup(**{**vars(opened), "unseen": few, "out": opened.out / f"transfer-{images}"})
        self.shape, self.images, self.table_at = opened.model.shape, images, opened.out
        trace = TraceDataset(RunFolder(run).trace)
        self.seen = Seen.of(trace.heads(), trace.curves(), self.shape)

    @cached_property
    def unseen(self) -> Unseen:
        """What judges policies."""
        return Unseen(self.setup)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The sensitivity table by gradients."""
        path = self.table_at / f"sensitivity-{self.images}-fisher.parquet"
        if path.exists():
            return load_table(path)
        setup = Setup(**{**vars(self.setup), "out": self.table_at})
        return setup.gradients(self.images, BITS).losses

    @cached_property
    def rule(self) -> Rule:
        """What a policy of this model carries."""
        return rule_of(self.seen, self.table, self.shape)

    def as_source(self) -> Source:
        """A policy of it; with a rule the numbers do not matter."""
        policy = Policy.uniform(self.shape, window=1, stride=max(self.shape.geometry.stride_row // 4, 1), prefix=1)
        return Source(policy, self.rule)

    def as_target(self, kind: str) -> Target:
        """With what a kind of transfer may know."""
        scores = Target(self.shape, self.seen).semantic_score() if kind == BY_MAP else None
        return Target(self.shape, self.seen if kind == BY_TRACE else None, scores)

    def presets(self, share: float) -> dict[str, Policy]:
        """The best of each that fits."""
        path, replay = self.setup.folder(share) / "presets.json", self.setup.study(SWEPT)
        limit, scores = self.setup.limit(share), self.setup.semantic_score
        return sweep_presets(replay, limit, scores, names=PRESETS, bits=BITS, path=path, progress=shown("presets")).best

    def searched(self, share: float, trials: int) -> Policy:
        """The target's own search, kept in searched.safetensors."""
        path = self.setup.folder(share) / "searched.safetensors"
        if not path.exists():
            config = SearchConfig(trials=trials, bits="16,8,4", images=self.images)
            store = StudyStore.open(self.setup.folder(share) / "searched.db")
            presets = {name: policy for name, policy in self.presets(share).items() if name not in CONTROLS}
            parts = (self.setup.study(self.images), self.setup.limit(share), self.setup.losses(self.table))
            study = PhasedStudy(*parts, self.setup.semantic_score, config, store, presets, shown("search"))
            save_policy(study.run().policy, path)
        return load_policy(path, self.shape)

    def smaller(self, share: float) -> dict[int, float]:
        """What the solver's answer loses by the first options of the table, by their number."""
        limit, found = self.setup.limit(share), {}
        stride = stride_of(self.shape.geometry, fitting_strides(limit))
        sizes = self.table[["window", "heavy", "decay", "bits"]].drop_duplicates()
        for count in (*COUNTS, len(sizes)):
            some = self.table.merge(sizes.head(count))
            try:
                found[count] = self.unseen.measure(solve(self.setup.losses(some), limit, stride))["kl"]
            except BudgetError:
                continue
        return found


def stride_of(geometry: Geometry, strides: list[int]) -> int:
    """A quarter of a row, or the nearest that fits."""
    return min(strides, key=lambda each: abs(each - geometry.stride_row / 4))


def main(
    runs: Runs,
    out: Out = Path("transfer.csv"),
    keep: Keep = "20,10,50,30,15%",
    pair: Pairs = None,
    trials: Trials = 10,
    table_images: TableImages = 8,
    unseen: Annotated[int, typer.Option(min=1, help="Images of each target that policies are judged by.")] = 16,
    folder: Folder = None,
) -> None:
    """Each pair by each kind, on the target's unseen images."""
    models = {model.shape.name: model for model in (Model(run, folder, table_images, unseen) for run in runs)}
    pairs = [each.split(":") for each in pair or [f"{a}:{b}" for a in models for b in models if a != b]]
    rows: list[dict[str, Any]] = []
    for share in shares(keep):
        for name in dict.fromkeys(target for _, target in pairs):
            others = [source for source, target in pairs if target == name]
            rows += compared(models, others, name, share, trials)
            write_table(pd.DataFrame(rows), out)
    table = pd.DataFrame(rows)
    show(table)
    print(f"table: {out}, figure: {save_figure(budgets_figure(lines(table)), out.with_suffix('.png'))}")


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows: the pair with the most limits, by kind, beside the best preset and the target's own search."""
    source, target = table.groupby(["source", "target"], sort=False).size().idxmax()
    pair = table[(table["source"] == source) & (table["target"] == target)]
    kinds = pair.rename(columns={"keep": "budget", "kind": "method"})
    others = {"searched": "own_kl", "best preset with bits": "preset_kl"}
    several = [
        kinds.drop_duplicates("budget").assign(method=name, replay_kl=lambda rows, of=column: rows[of])
        for name, column in others.items()
    ]
    return pd.concat([kinds, *several], ignore_index=True)


def compared(models: dict[str, Model], sources: list[str], name: str, share: float, trials: int) -> list[dict[str, Any]]:
    """All rows of a target at a limit."""
    target = models[name]
    limit, measure = target.setup.limit(share), target.unseen.measure
    losses = {preset: measure(policy)["kl"] for preset, policy in target.presets(share).items() if preset not in CONTROLS}
    preset = min(losses, key=lambda each: losses[each])
    own = measure(target.searched(share, trials))["kl"]
    tables, heads = target.smaller(share) if share == COUNTED_AT else {}, target.shape.layers * target.shape.kv_heads
    rows = []
    for source in sources:
        several = [models[each].as_source() for each in source.split("+")]
        for kind in (BY_TRACE, BY_MAP, BY_DEPTH):
            began = time.monotonic()
            policy = carry_over(several, target.as_target(kind), limit)
            seconds, found = time.monotonic() - began, measure(policy)
            low, high = mean_interval(np.array(found["by_image"]))
            enough = min((count for count, loss in tables.items() if loss <= found["kl"]), default=None)
            way = (losses[preset] - found["kl"]) / (losses[preset] - own)
            row = {"source": source, "target": name, "kind": kind, "keep": share, "replay_kl": found["kl"]}
            row |= {"kl_low": low, "kl_high": high, "best_preset": preset, "preset_kl": losses[preset], "own_kl": own}
            row |= {"share": way, "options": enough, "cells": None if enough is None else enough * heads}
            rows.append(row | {"seconds": round(seconds, 1)})
    return rows


if __name__ == "__main__":
    start(main)
