"""The sensitivity table: the loss of each KV head alone at a handful of options, measured once, solved for any budget."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headscope.errors import DataError
from headscope.facts import check, parsed, plain, said, shown
from headscope.policy import BITS, BUILT_IN, FEATURES, ModelShape
from headscope.progress import Progress, of_task
from headscope.reading import read_parquet, to_frame
from headscope.storage import write_whole
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.options import COLUMNS, Option, default_options, table_stride
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.single_head import SingleHeadLoss

# Below this a head loses nothing that matters (a 20 % policy of the prototype lost 1.6e-2 in all 48 heads together).
NEGLIGIBLE = 2e-6
SAVE_EVERY = 5.0  # seconds
_KEY = b"headscope"
_KIND = "a sensitivity table"
_WHOLE = ["layer", "kv_head", "window", "heavy", "bits", "prompt", "score", "stride"]
_COLUMNS = pa.schema([(name, pa.int64() if name in _WHOLE else pa.float64()) for name in COLUMNS])


def measure_sensitivity(
    replay: Replay,
    options: Sequence[Option] | None = None,
    path: str | Path | None = None,
    *,
    stride: int | None = None,
    anchor: int = 0,
    groups: Groups | None = None,
    negligible: float = NEGLIGIBLE,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure each head alone at each option, all other heads full.

    Option after option over all heads, so that a table that is stopped early answers every head at the first options.
    A head that loses less than `negligible` at an option is taken to lose as little wherever it keeps more.

    Args:
        replay: the calibration images (a few are enough: the order of heads is stable).
        options: by default `default_options` of the model's grid.
        path: parquet file, continued if it is there, rewritten whole every SAVE_EVERY seconds and at the end, also after an
            interruption.
        stride: tokens between two choices of the heavy options; by default `table_stride`.
        anchor: first image tokens that the head keeps at every option.
        groups: measure heads of one class in one layer together, in so many fewer cells; each head gets its part of the loss.
        negligible: nats a token.
        progress: told of cells, see `headscope.progress`.

    Returns:
        One row per measured (layer, kv_head, option): the columns of COLUMNS, loss in nats a token.
        Its `attrs` say how many `cells` this call measured, and the `seconds` that took.

    Raises:
        DataError: `path` holds a table of other weights, images, stride or groups.
    """
    shape = replay.model.shape
    stride = stride or table_stride(shape.geometry)
    shape.geometry.check_stride(stride)
    options = list(options) if options is not None else default_options(shape.geometry)
    identity = table_identity(replay, stride) | ({"groups": groups.identity} if groups is not None else {})
    rows = _rows_in(path, identity | ({"anchor": anchor} if anchor else {}), shape)
    cells = _cells(shape, options, groups)
    known, alone = _known(rows.rows, cells), SingleHeadLoss(replay, stride, anchor)
    started, measured, tell = time.monotonic(), 0, of_task(progress, "each head alone", len(cells))
    with rows:
        for done, cell in enumerate(cells):
            if cell not in known:
                layer, heads, option = cell
                bound = min((known.get((layer, heads, o), np.inf) for o in options if o.smaller_than(option)), default=np.inf)
                known[cell] = bound if bound < negligible else alone.loss(layer, heads, option)
                measured += bound >= negligible
                shares = groups.shares(layer, heads, option) if groups is not None else np.ones(1)
                rows.add(cell, stride, known[cell] * shares)
            tell(done + 1, len(cells))
    frame = _frame(rows.rows)
    frame.attrs |= {"cells": measured, "seconds": time.monotonic() - started}
    return frame


# What is measured at once: heads of one layer at one option.
Cell = tuple[int, tuple[int, ...], Option]


def _cells(shape: ModelShape, options: Sequence[Option], groups: Groups | None) -> list[Cell]:
    single = [(layer, (head,)) for layer in range(shape.layers) for head in range(shape.kv_heads)]
    return [(layer, heads, option) for option in options for layer, heads in (groups.members if groups else single)]


@dataclass
class _Rows:
    """The rows of a table in its file, rewritten now and then while the block runs, and at its end whatever ends it."""

    rows: list[tuple]
    path: Path | None
    identity: dict[str, str | int]
    saved: float = field(default_factory=time.monotonic)

    def add(self, cell: Cell, stride: int, losses: np.ndarray) -> None:
        """A row for each head of the cell."""
        layer, heads, option = cell
        for head, loss in zip(heads, losses, strict=True):
            self.rows.append((layer, head, *option.numbers(), stride, float(loss)))
        if time.monotonic() - self.saved > SAVE_EVERY:
            self._save()

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *error: object) -> None:
        self._save()

    def _save(self) -> None:
        if self.path is not None:
            write_rows(self.rows, self.path, self.identity)
        self.saved = time.monotonic()


def _rows_in(path: str | Path | None, identity: dict[str, str | int], shape: ModelShape) -> _Rows:
    """What stands in the file already.

    Raises:
        DataError: it holds a table of something else.
    """
    if path is None or not Path(path).exists():
        return _Rows([], None if path is None else Path(path), identity)
    kept = load_table(path, identity)
    if len(foreign := kept[(kept["layer"] >= shape.layers) | (kept["kv_head"] >= shape.kv_heads)]):
        raise DataError(f"{path}: {_row(foreign.iloc[0])}: {shape.name} has no such head; delete it to measure again.")
    return _Rows(list(kept.itertuples(index=False, name=None)), Path(path), identity)


def _known(rows: Sequence[tuple], cells: Sequence[Cell]) -> dict[Cell, float]:
    """The cells that a table holds for all of their heads."""
    found = {tuple(row[:-2]): float(row[-1]) for row in rows}
    known = {}
    for layer, heads, option in cells:
        losses = [found.get((layer, head, *option.numbers())) for head in heads]
        if None not in losses:
            known[layer, heads, option] = sum(loss for loss in losses if loss is not None)
    return known


def time_cells(alone: SingleHeadLoss, option: Option) -> float:
    """Seconds that a cell takes in a table of every head: those of a bottom, a middle and a top layer, and their share of
    the option's replay."""
    shape = alone.replay.model.shape
    began = time.monotonic()
    alone.loss(0, 0, option)
    alone.loss(shape.layers - 1, 0, option)
    once = time.monotonic() - began
    began = time.monotonic()
    picked = (0, shape.layers // 2, shape.layers - 1)
    for layer in picked:
        alone.loss(layer, 0, option)
    return once / (shape.layers * shape.kv_heads) + (time.monotonic() - began) / len(picked)


def table_identity(replay: Replay, stride: int) -> dict[str, str | int]:
    """What a table belongs to: weights, stride, and the recorded images it was measured on."""
    tokens = torch.as_tensor(replay.samples.tokens).to(torch.int32).contiguous()
    images = hashlib.sha256(tokens.numpy().tobytes())
    images.update(json.dumps([list(replay.samples.prompts), replay.guidance, replay.temperature]).encode())
    if replay.samples.cfg_interval >= 0:
        images.update(str(replay.samples.cfg_interval).encode())
    return {"weights": replay.model.shape.weights, "stride": stride, "images": images.hexdigest()[:16]}


def load_table(path: str | Path, identity: dict[str, str | int] | None = None) -> pd.DataFrame:
    """Read a table; with `identity`, refuse one that belongs to something else.

    Raises:
        DataError: missing, not readable, without the columns and numbers of a table, or of other weights, images or stride.
    """
    read = read_parquet(path, "sensitivity table", _KIND)
    for name, usual in FEATURES.items():
        if name not in read.column_names:  # as tables were before there was such a thing
            read = read.append_column(name, pa.array([usual] * len(read), pa.int64()))
    try:
        table = read.select(COLUMNS).cast(_COLUMNS)  # names that are missing or twice are refused
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path}: not {_KIND} ({said(error)}); delete it to measure again.") from None
    text = (read.schema.metadata or {}).get(_KEY, b"{}")
    found = check(parsed(text, f"{path}: {_KEY.decode()}"), {}, str(path))
    for name in {**found, **identity} if identity is not None else ():
        if found.get(name) != (expected := (identity or {}).get(name)):
            raise DataError(
                f"{path}: measured on other {plain(name)} ({shown(found.get(name))}, expected {expected}); "
                "choose another folder or delete the table to measure again."
            )
    frame = to_frame(table)
    if len(strange := frame[~_possible(frame)]):
        raise DataError(f"{path}: holds {_row(strange.iloc[0])}, which is no measured loss; delete it to measure again.")
    return frame.astype({**dict.fromkeys(_WHOLE, "int64"), "decay": "float64", "loss": "float64"})


def _possible(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of a head, an option and a loss; an empty cell is none."""
    numbers = frame.fillna(np.nan).astype("float64")
    known = numbers["decay"].between(0, 1) & numbers["bits"].isin(BITS) & numbers["prompt"].isin((0, 1))
    known &= numbers["score"].isin(range(len(BUILT_IN)))
    return (numbers[_WHOLE] >= 0).all(axis=1) & known & np.isfinite(numbers["loss"])


def _row(row: pd.Series) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in row.items())


def _frame(rows: Sequence[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=COLUMNS)
    return frame.astype({**dict.fromkeys(_WHOLE, "int64"), "decay": "float64", "loss": "float64"})


def write_rows(rows: Sequence[tuple], path: str | Path, identity: dict[str, str | int]) -> None:
    """Write a table whole.

    Args:
        rows: of `COLUMNS`.
        path: of its parquet file.
        identity: what it belongs to, see `table_identity`.
    """
    table = pa.Table.from_pandas(_frame(rows), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(identity).encode()})
    write_whole(path, lambda temporary: pq.write_table(table, temporary))
