"""The sensitivity table: the loss of each KV head alone at a handful of options, measured once, solved for any budget."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headscope.errors import DataError
from headscope.facts import check, parsed, plain, said, shown
from headscope.policy.shape import ModelShape
from headscope.reading import read_parquet, to_frame
from headscope.storage import write_whole
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.options import COLUMNS, Option, default_options, table_stride
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.single_head import HeadsAlone

# Below this a head loses nothing that matters (a 20 % policy of the prototype lost 1.6e-2 in all 48 heads together).
NEGLIGIBLE = 2e-6
_KEY = b"headscope"
_KIND = "a sensitivity table"
_WHOLE = ["layer", "kv_head", "window", "heavy", "stride"]
_COLUMNS = pa.schema([(name, pa.int64() if name in _WHOLE else pa.float64()) for name in COLUMNS])


def measure_sensitivity(
    replay: Replay,
    options: Sequence[Option] | None = None,
    path: str | Path | None = None,
    *,
    stride: int | None = None,
    anchor: int = 0,
    resume: bool = True,
    seconds: float | None = None,
    save_every: float = 5.0,
    negligible: float = NEGLIGIBLE,
    groups: Groups | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Measure each head alone at each option, all other heads full.

    Option after option over all heads, so that a table that is stopped early answers every head at the first options.
    A head that loses less than `negligible` at an option is taken to lose as little wherever it keeps more.

    Args:
        replay: the calibration images (a few are enough: the order of heads is stable).
        options: by default `default_options` of the model's grid.
        path: parquet file, rewritten whole every `save_every` seconds and at the end, also after an interruption.
        stride: of the heavy options; by default `table_stride`.
        anchor: first image tokens that the head keeps at every option.
        resume: continue the table in `path` if there is one.
        seconds: stop, with what there is, after this time.
        groups: measure heads of one class in one layer together, in so many fewer cells; each head gets its part of the loss.
        progress: called with (cells done, cells in all).

    Returns:
        One row per measured (layer, kv_head, option): layer, kv_head, window, heavy, decay, stride, loss (nats a token). Its
        `attrs` say how many `cells` this call measured, and the `seconds` that took.

    Raises:
        DataError: `path` holds a table of other weights, images, stride or groups.
    """
    shape = replay.model.shape
    stride = stride or table_stride(shape.geometry)
    shape.geometry.check_stride(stride)
    options = list(options) if options is not None else default_options(shape.geometry)
    identity = table_identity(replay, stride) | ({"groups": groups.identity} if groups is not None else {})
    identity |= {"anchor": anchor} if anchor else {}
    rows: list[tuple] = []
    if path is not None and resume and Path(path).exists():
        kept = load_table(path, identity)
        if len(foreign := kept[(kept["layer"] >= shape.layers) | (kept["kv_head"] >= shape.kv_heads)]):
            raise DataError(f"{path}: {_row(foreign.iloc[0])}: {shape.name} has no such head; delete it to measure again.")
        rows = list(kept.itertuples(index=False, name=None))
    known = _known(rows, cells := _cells(shape, options, groups))
    alone = HeadsAlone(replay, stride, anchor)
    started = saved = time.monotonic()
    measured = 0
    try:
        for done, (layer, heads, option) in enumerate(cells):
            if (layer, heads, option) not in known:
                bound = min((known.get((layer, heads, o), np.inf) for o in options if o.smaller_than(option)), default=np.inf)
                loss = bound if bound < negligible else alone.loss(layer, heads, option)
                measured += bound >= negligible
                known[layer, heads, option] = loss
                shares = groups.shares(layer, heads, option) if groups is not None else np.ones(1)
                for head, share in zip(heads, shares, strict=True):
                    rows.append((layer, head, option.window, option.heavy, option.decay, stride, loss * float(share)))
            now = time.monotonic()
            if path is not None and now - saved > save_every:
                _save(rows, path, identity)
                saved = now
            if progress is not None:
                progress(done + 1, len(cells))
            if seconds is not None and now - started > seconds:
                break
    finally:
        if path is not None:
            _save(rows, path, identity)
    frame = _frame(rows)
    frame.attrs |= {"cells": measured, "seconds": time.monotonic() - started}
    return frame


# What is measured at once: heads of one layer at one option.
Cell = tuple[int, tuple[int, ...], Option]


def _cells(shape: ModelShape, options: Sequence[Option], groups: Groups | None) -> list[Cell]:
    single = [(layer, (head,)) for layer in range(shape.layers) for head in range(shape.kv_heads)]
    return [(layer, heads, option) for option in options for layer, heads in (groups.members if groups else single)]


def _known(rows: Sequence[tuple], cells: Sequence[Cell]) -> dict[Cell, float]:
    """The cells that a table holds for all of their heads."""
    found = {tuple(row[:5]): float(row[6]) for row in rows}
    known = {}
    for layer, heads, option in cells:
        losses = [found.get((layer, head, option.window, option.heavy, option.decay)) for head in heads]
        if None not in losses:
            known[layer, heads, option] = sum(loss for loss in losses if loss is not None)
    return known


def time_cells(alone: HeadsAlone, option: Option) -> float:
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
    return {"weights": replay.model.shape.weights, "stride": stride, "images": images.hexdigest()[:16]}


def load_table(path: str | Path, identity: dict[str, str | int] | None = None) -> pd.DataFrame:
    """Read a table; with `identity`, refuse one that belongs to something else.

    Raises:
        DataError: missing, not readable, without the columns and numbers of a table, or of other weights, images or stride.
    """
    read = read_parquet(path, "sensitivity table", _KIND)
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
    return (numbers[_WHOLE] >= 0).all(axis=1) & numbers["decay"].between(0, 1) & np.isfinite(numbers["loss"])


def _row(row: pd.Series) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in row.items())


def _frame(rows: Sequence[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=COLUMNS)
    return frame.astype({**dict.fromkeys(_WHOLE, "int64"), "decay": "float64", "loss": "float64"})


def _save(rows: Sequence[tuple], path: str | Path, identity: dict[str, str | int]) -> None:
    table = pa.Table.from_pandas(_frame(rows), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(identity).encode()})
    write_whole(path, lambda temporary: pq.write_table(table, temporary))
