"""Which sensitivity table a search begins with: of every head, of groups (a class in a layer), or of the trace alone.

The table of every head is the best and costs most: layers x KV heads x options replays. Large models (Janus-Pro-7B: 30 x 32
x 16 = 15,360) begin with groups, 30 x 2 x 16; what a table of every head would cost is told from the cells that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from headscope.policy import ModelShape
from headscope.progress import Progress
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.options import ANCHOR, default_options, table_stride
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.sensitivity import measure_sensitivity, time_cells
from headscope.tuning.measure.single_head import SingleHeadLoss
from headscope.words import duration

HEADS, GROUPS, COVERAGE, AUTO = "heads", "groups", "coverage", "auto"
# Above so many cells `auto` measures groups: at a second a cell, what a user waits for over a coffee.
MOST_CELLS = 2000


@dataclass(frozen=True)
class Table:
    """A sensitivity table and what it cost.

    Attributes:
        losses: see `measure_sensitivity`.
        kind: heads, groups or coverage.
        cells: of a table of this kind, measured now or before; 0 for coverage, which measures none.
        every: cells of a table of every head.
        seconds: that measuring what was missing took.
        a_cell: seconds of one cell; nan where nothing had to be measured.
    """

    losses: pd.DataFrame
    kind: str
    cells: int
    every: int
    seconds: float
    a_cell: float

    def sentence(self) -> str:
        """What was measured, and what a table of every head would cost."""
        what = {HEADS: "every head alone", GROUPS: "the heads of a class in a layer together", COVERAGE: "the trace alone"}
        text = f"sensitivity table: {what[self.kind]}, {self.cells:,} cells in {duration(self.seconds)}"
        if self.kind == HEADS:
            return f"{text}."
        cost = f", about {duration(self.every * self.a_cell)}" if self.a_cell == self.a_cell else ""
        return f"{text}; one of every head (`table` heads) would be {self.every:,}{cost}."

    def facts(self) -> dict[str, Any]:
        """For search.json."""
        return {"kind": self.kind, "cells": self.cells, "cells_of_every_head": self.every, "seconds": round(self.seconds, 2)}


def sensitivity_table(
    replay: Replay,
    kind: str = HEADS,
    groups: Groups | None = None,
    path: str | Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """Measure or read the table of a kind; continued where it stopped.

    Args:
        replay: the calibration images.
        kind: heads, groups, coverage, or auto to choose by the model's size.
        groups: needed for all but `heads`, see `Groups`.
        path: of the table of every head; that of groups is kept beside it.
        progress: told of cells, see `headscope.progress`.

    Raises:
        DataError: see `measure_sensitivity`.
    """
    shape = replay.model.shape
    options = default_options(shape.geometry)
    every = shape.layers * shape.kv_heads * len(options)
    kind = kind_for(kind, shape)
    if kind == HEADS:
        losses = measure_sensitivity(replay, options, path, anchor=ANCHOR, progress=progress)
        return Table(losses, kind, every, every, *_cost(losses))
    assert groups is not None
    if kind == GROUPS:
        beside = Path(path).with_name(f"{Path(path).stem}-groups.parquet") if path is not None else None
        losses = measure_sensitivity(replay, options, beside, anchor=ANCHOR, groups=groups, progress=progress)
        return Table(losses, kind, len(groups.members) * len(options), every, *_cost(losses))
    stride = table_stride(shape.geometry)
    losses = groups.coverage.table(options, stride)
    return Table(losses, kind, 0, every, 0.0, time_cells(SingleHeadLoss(replay, stride, ANCHOR), options[1]))


def kind_for(kind: str, shape: ModelShape) -> str:
    """What `auto` means for a model."""
    if kind != AUTO:
        return kind
    return HEADS if shape.layers * shape.kv_heads * len(default_options(shape.geometry)) <= MOST_CELLS else GROUPS


def every_head(kind: str, shape: ModelShape) -> bool:
    """Whether a table of this kind measures every head of a model, and so needs no groups."""
    return kind_for(kind, shape) == HEADS


def _cost(losses: pd.DataFrame) -> tuple[float, float]:
    seconds, cells = float(losses.attrs["seconds"]), int(losses.attrs["cells"])
    return seconds, seconds / cells if cells else float("nan")
