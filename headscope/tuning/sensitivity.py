"""The sensitivity table: the loss of each KV head alone at a handful of options, measured once, solved for any budget."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headscope.errors import DataError
from headscope.storage import write_whole
from headscope.tuning.alone import HeadsAlone
from headscope.tuning.options import COLUMNS, Option, default_options
from headscope.tuning.replay import Replay

# Below this a head loses nothing that matters (a 20 % policy of the prototype lost 1.6e-2 in all 48 heads together).
NEGLIGIBLE = 2e-6
_KEY = b"headscope"


def measure_sensitivity(
    replay: Replay,
    options: Sequence[Option] | None = None,
    path: str | Path | None = None,
    *,
    stride: int | None = None,
    decay: float = 1.0,
    resume: bool = True,
    seconds: float | None = None,
    save_every: float = 5.0,
    negligible: float = NEGLIGIBLE,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Measure each head alone at each option, all other heads full.

    Option after option over all heads, so that a table that is stopped early answers every head at the first options.
    A head that loses less than `negligible` at an option is taken to lose as little wherever it keeps more.

    Args:
        replay: the calibration pictures (a few are enough: the order of heads is stable).
        options: by default `default_options` of the model's grid.
        path: parquet file, rewritten whole every `save_every` seconds and at the end, also after an interruption.
        stride: of the heavy options; by default one row.
        decay: of the default options' scores.
        resume: continue the table in `path` if there is one.
        seconds: stop, with what there is, after this time.
        progress: called with (cells done, cells in all).

    Returns:
        One row per measured (layer, kv_head, option): layer, kv_head, window, heavy, decay, stride, loss (nats a token).

    Raises:
        DataError: `path` holds a table of other weights, pictures or stride.
    """
    shape = replay.model.shape
    stride = stride or shape.geometry.span
    shape.geometry.check_stride(stride)
    options = list(options) if options is not None else default_options(shape.geometry, decay)
    identity = table_identity(replay, stride)
    rows: list[tuple] = []
    if path is not None and resume and Path(path).exists():
        rows = list(load_table(path, identity).itertuples(index=False, name=None))
    known = {tuple(row[:5]): float(row[6]) for row in rows}
    cells = [(layer, head, option) for option in options for layer in range(shape.layers) for head in range(shape.kv_heads)]
    alone = HeadsAlone(replay, stride)
    started = saved = time.monotonic()
    try:
        for done, (layer, head, option) in enumerate(cells):
            key = (layer, head, option.window, option.heavy, option.decay)
            if key not in known:
                smaller = [known.get((layer, head, o.window, o.heavy, o.decay)) for o in options if o.smaller_than(option)]
                bound = min((loss for loss in smaller if loss is not None), default=float("inf"))
                loss = bound if bound < negligible else alone.loss(layer, head, option)
                known[key] = loss
                rows.append((*key, stride, loss))
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
    return _frame(rows)


def table_identity(replay: Replay, stride: int) -> dict[str, str | int]:
    """What a table belongs to: weights, stride, and the recorded pictures it was measured on."""
    tokens = torch.as_tensor(replay.samples.tokens).to(torch.int32).contiguous()
    pictures = hashlib.sha256(tokens.numpy().tobytes())
    pictures.update(json.dumps([list(replay.samples.prompts), replay.guidance, replay.temperature]).encode())
    return {"weights": replay.model.shape.weights, "stride": stride, "pictures": pictures.hexdigest()[:16]}


def load_table(path: str | Path, identity: dict[str, str | int] | None = None) -> pd.DataFrame:
    """Read a table; with `identity`, refuse one that belongs to something else.

    Raises:
        DataError: missing, damaged, without the columns of a table, or of other weights, pictures or stride.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such sensitivity table.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable sensitivity table ({error}); delete it to measure again.") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise DataError(f"{path}: not a sensitivity table, it lacks {', '.join(missing)}; delete it to measure again.")
    found = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    for name, expected in (identity or {}).items():
        if found.get(name) != expected:
            raise DataError(
                f"{path}: measured on other {name} ({found.get(name)}, expected {expected}); "
                "choose another folder or delete the table to measure again."
            )
    return table.to_pandas()[COLUMNS]


def _frame(rows: Sequence[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=COLUMNS)
    whole = ["layer", "kv_head", "window", "heavy", "stride"]
    return frame.astype({**dict.fromkeys(whole, "int64"), "decay": "float64", "loss": "float64"})


def _save(rows: Sequence[tuple], path: str | Path, identity: dict[str, str | int]) -> None:
    table = pa.Table.from_pandas(_frame(rows), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(identity).encode()})
    write_whole(path, lambda temporary: pq.write_table(table, temporary))
