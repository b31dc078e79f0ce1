"""Which sensitivity table a search begins with: by gradients, of every head alone, of groups (a class in a layer), or of the
trace alone.

By gradients it costs one replay an option, whatever the number of heads (fisher.py); where a decoder can't be taken apart for
that, small models measure every head alone, layers x KV heads x options replays, and large ones groups, layers x 2 x options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headscope.errors import DataError
from headscope.intervals import rank_correlation
from headscope.models import ImageModel
from headscope.policy import BUILT_IN, EXPECTED
from headscope.progress import Progress
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.fisher import fisher_table
from headscope.tuning.measure.options import ANCHOR, COLUMNS, Option, default_options, table_stride
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.sensitivity import (
    NEGLIGIBLE,
    load_table,
    measure_sensitivity,
    table_identity,
    time_cells,
    write_rows,
)
from headscope.tuning.measure.single_head import SingleHeadLoss
from headscope.tuning.measure.sites import find_sites
from headscope.words import duration

HEADS, GROUPS, COVERAGE, FISHER, AUTO = "heads", "groups", "coverage", "fisher", "auto"
# Above so many cells `auto` measures groups, where gradients can't be had: at a second a cell, an hour.
MOST_CELLS = 4000
NO_GRADIENTS = (
    "{}: its heads do not write into a matrix that is a module, such as `self_attn.o_proj`, which a table by gradients needs"
)
# Cells of a table by gradients that are measured exactly too, and the ratio at which it is not believed.
CHECKED, DISAGREES = 8, 3.0


@dataclass(frozen=True)
class Table:
    """A sensitivity table and what it cost.

    Attributes:
        losses: see `measure_sensitivity`.
        kind: heads, fisher, groups or coverage.
        cells: of a table of this kind, measured now or before; 0 for coverage, which measures none.
        every: cells of a table of every head.
        seconds: that measuring what was missing took.
        a_cell: seconds of one cell; nan where nothing had to be measured.
        checked: what a few cells measured exactly say of a table by gradients, or why there is none, in words.
    """

    losses: pd.DataFrame
    kind: str
    cells: int
    every: int
    seconds: float
    a_cell: float
    checked: str = ""

    def sentence(self) -> str:
        """What was measured, and what a table of every head would cost."""
        what = {
            FISHER: "every head by gradients",
            HEADS: "every head alone",
            GROUPS: "the heads of a class in a layer together",
            COVERAGE: "the trace alone",
        }
        text = f"sensitivity table: {what[self.kind]}, {self.cells:,} cells in {duration(self.seconds)}"
        if self.kind in (HEADS, FISHER):
            return f"{text}{self.checked}."
        cost = f", about {duration(self.every * self.a_cell)}" if self.a_cell == self.a_cell else ""
        return f"{text}{self.checked}; one of every head (`table` heads) would be {self.every:,}{cost}."

    def facts(self) -> dict[str, Any]:
        """For search.json."""
        return {"kind": self.kind, "cells": self.cells, "cells_of_every_head": self.every, "seconds": round(self.seconds, 2)}


def sensitivity_table(
    replay: Replay,
    kind: str = HEADS,
    groups: Groups | None = None,
    path: str | Path | None = None,
    progress: Progress | None = None,
    bits: Sequence[int] = (16,),
    count: int | None = None,
    prompts: Sequence[int] = (1,),
) -> Table:
    """Measure or read the table of a kind; continued where it stopped.

    Args:
        replay: the calibration images.
        kind: fisher, heads, groups, coverage, or auto, see `kind_for`.
        groups: needed for groups and coverage, see `Groups`.
        path: of the table of every head; the others are kept beside it.
        progress: told of cells, see `headscope.progress`.
        bits: of the options.
        count: the first so many of `default_options`, by default all.
        prompts: of the options; what drops nothing is not measured, and the trace alone does not tell what a prompt is worth.

    Raises:
        DataError: see `measure_sensitivity`.
    """
    shape = replay.model.shape
    options = offered(replay, kind, bits, count, prompts)
    every = shape.layers * shape.kv_heads * len(options)
    asked, kind = kind, kind_for(kind, replay.model, bits)
    told = f"; {NO_GRADIENTS.format(replay.model.name)}" if asked == AUTO and kind != FISHER else ""
    if kind == HEADS:
        return replace(_exact(replay, options, path, progress), checked=told)
    if kind == FISHER:
        return _by_gradients(replay, options, path, progress)
    assert groups is not None
    if kind == GROUPS:
        beside = Path(path).with_name(f"{Path(path).stem}-groups.parquet") if path is not None else None
        losses = measure_sensitivity(replay, options, beside, anchor=ANCHOR, groups=groups, progress=progress)
        cells = len(groups.members) * len(options)
        return Table(_rows_of_all(options, losses), kind, cells, every, *_cost(losses), told)
    stride = table_stride(shape.geometry)
    losses = groups.coverage.table(options, stride)
    return Table(losses, kind, 0, every, 0.0, time_cells(SingleHeadLoss(replay, stride, ANCHOR), options[1]))


def offered(replay: Replay, kind: str, bits: Sequence[int], count: int | None, prompts: Sequence[int]) -> list[Option]:
    """The options of a table; arguments as those of `sensitivity_table`. Those by the score `expected` are among them where the
    replay knows what tokens usually receive; the trace alone does not tell what scores are worth."""
    shape = replay.model.shape
    drops = shape.prefix_slots(replay.prefix, whole=False) < shape.prefix_slots(replay.prefix)
    scores = (0, BUILT_IN.index(EXPECTED)) if replay.usual is not None and kind != COVERAGE else (0,)
    return default_options(shape.geometry, bits, count, prompts if drops and kind != COVERAGE else (1,), scores)


def _exact(replay: Replay, options: list[Option], path: str | Path | None, progress: Progress | None) -> Table:
    losses = measure_sensitivity(replay, options, path, anchor=ANCHOR, progress=progress)
    every = replay.model.shape.layers * replay.model.shape.kv_heads * len(options)
    return Table(_rows_of_all(options, losses), HEADS, every, every, *_cost(losses))


def _by_gradients(replay: Replay, options: list[Option], path: str | Path | None, progress: Progress | None) -> Table:
    """The table of every head by gradients, or what stands of it in its file; a few of its cells are measured exactly, and
    where they disagree the exact table takes its place."""
    shape, stride = replay.model.shape, table_stride(replay.model.shape.geometry)
    every = shape.layers * shape.kv_heads * len(options)
    alone = SingleHeadLoss(replay, stride, ANCHOR)
    if not alone.outputs.can:
        raise DataError(f"{NO_GRADIENTS.format(replay.model.name)}; take another kind of table.")
    beside = Path(path).with_name(f"{Path(path).stem}-fisher.parquet") if path is not None else None
    identity = table_identity(replay, stride) | {"kind": FISHER, "anchor": ANCHOR}
    there = beside is not None and beside.exists()
    losses, seconds = load_table(beside, identity) if beside is not None and there else pd.DataFrame(columns=COLUMNS), 0.0
    if missing := [option for option in options if losses[_rows_of(losses, option)].empty]:
        part = None if beside is None else beside.with_suffix(".part.json")
        more = fisher_table(replay, missing, stride, anchor=ANCHOR, part=part, progress=progress)
        losses, seconds = more if losses.empty else pd.concat([losses, more], ignore_index=True), float(more.attrs["seconds"])
        if beside is not None:
            write_rows(list(losses.itertuples(index=False, name=None)), beside, identity)
    losses = _rows_of_all(options, losses)
    ratio, correlation = _checked(losses, alone, options)
    if not (1 / DISAGREES < ratio < DISAGREES and correlation > 0.5):
        exact = _exact(replay, options, path, progress)
        told = f", as one by gradients was {ratio:.2f} times as large in {CHECKED} cells (rank correlation {correlation:.2f})"
        return replace(exact, checked=told)
    told = f", {ratio:.2f} times what {CHECKED} cells measured exactly give (rank correlation {correlation:.2f})"
    return Table(losses, FISHER, every, every, seconds, seconds / every if seconds else float("nan"), told)


def _checked(losses: pd.DataFrame, alone: SingleHeadLoss, options: list[Option]) -> tuple[float, float]:
    """Median ratio of the estimate to exact losses, and their rank correlation, in CHECKED cells over all sizes of loss."""
    ranked = losses[losses["loss"] > NEGLIGIBLE].sort_values("loss")
    some = ranked.iloc[np.linspace(0, len(ranked) - 1, min(CHECKED, len(ranked))).round().astype(int)]
    found: list[tuple[float, float]] = []
    for option in options:  # an option after the other, so that each is replayed once
        mine = some[_rows_of(some, option)]
        places = zip(mine["layer"], mine["kv_head"], mine["loss"], strict=True)
        found += [(float(loss), alone.loss(int(layer), int(head), option)) for layer, head, loss in places]
    if len(found) < 3:  # nothing loses anything
        return 1.0, 1.0
    estimates, exact = np.array(found).T
    return float(np.median(estimates / np.maximum(exact, NEGLIGIBLE))), rank_correlation(estimates, exact)[0]


def _rows_of_all(options: Sequence[Option], losses: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of other options, which a table's file may hold from another search."""
    wanted = {tuple(asdict(option).values()) for option in options}
    mine = np.array([each in wanted for each in zip(*(losses[name] for name in asdict(options[0])), strict=True)], dtype=bool)
    found = losses if bool(mine.all()) else losses[mine].reset_index(drop=True)
    found.attrs |= losses.attrs
    return found


def _rows_of(table: pd.DataFrame, option: Option) -> pd.Series:
    numbers = asdict(option)
    return (table[list(numbers)] == list(numbers.values())).all(axis=1)


def kind_for(kind: str, model: ImageModel, bits: Sequence[int] = (16,)) -> str:
    """What `auto` means for a model: by gradients, else every head alone up to MOST_CELLS, else groups."""
    if kind != AUTO:
        return kind
    if find_sites(model) is not None:
        return FISHER
    shape = model.shape
    return HEADS if shape.layers * shape.kv_heads * len(default_options(shape.geometry, bits)) <= MOST_CELLS else GROUPS


def every_head(kind: str, model: ImageModel, bits: Sequence[int] = (16,)) -> bool:
    """Whether a table of this kind measures every head of a model, and so needs no groups."""
    return kind_for(kind, model, bits) in (HEADS, FISHER)


def _cost(losses: pd.DataFrame) -> tuple[float, float]:
    seconds, cells = float(losses.attrs["seconds"]), int(losses.attrs["cells"])
    return seconds, seconds / cells if cells else float("nan")
