"""Reading and writing the files of a trace: one sentence for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.storage import read_json, write_whole

KEYS = ("sample", "stream", "layer", "head", "band")
FACTS = (
    "model",
    "architecture",
    "weights",
    "geometry",
    "samples",
    "pictures",
    "definitions",
    "selection",
    "statistics",
    "cache",
    "complete",
)


def read_meta(path: Path) -> dict[str, Any]:
    """The facts of the trace folder `path`, finished or not.

    Raises:
        DataError: trace.json is missing, damaged, or lacks one of FACTS.
    """
    meta = read_json(path / "trace.json")
    if missing := [name for name in FACTS if not isinstance(meta, dict) or name not in meta]:
        raise DataError(f"{path / 'trace.json'}: lacks {', '.join(missing)}; delete the folder and trace again.")
    return dict(meta)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a parquet file, whole or not at all; bytes of floats lie split, which compresses them a fifth better."""
    made = pa.Table.from_pandas(table, preserve_index=False)
    floats = [field.name for field in made.schema if pa.types.is_floating(field.type)]
    lists = [
        f"{field.name}.list.element"
        for field in made.schema
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    plain = [field.name for field in made.schema if not pa.types.is_floating(field.type) and not pa.types.is_list(field.type)]
    write_whole(
        path,
        lambda target: pq.write_table(
            made, target, compression="zstd", use_dictionary=plain, use_byte_stream_split=floats + lists
        ),
    )


def write_curves(path: Path, curves: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    try:
        write_whole(path, lambda target: save_file(curves, target))
    except SafetensorError as error:  # what a full disk is to safetensors; it is no OSError
        raise DataError(f"{path}: cannot be written ({error}); free some space, then go on with --resume.") from error


def read_table(
    path: Path, columns: Sequence[str] | None = None, filters: list[tuple[str, str, Any]] | None = None
) -> pd.DataFrame:
    """A table of statistics; columns that are not asked for and rows that do not match are not read.

    Raises:
        DataError: missing, damaged, a table of something else, or without a column that is asked for.
    """
    try:
        there = pq.read_schema(path).names
        if missing := [name for name in KEYS if name not in there]:
            raise DataError(f"{path}: lacks {', '.join(missing)}, so it is no table of a trace; trace again.")
        wanted = None if columns is None else [*KEYS, *(name for name in columns if name not in KEYS)]
        if unknown := [name for name in (*(wanted or ()), *(f[0] for f in filters or ())) if name not in there]:
            raise DataError(f"{path}: has no column {', '.join(unknown)}; there are {', '.join(there)}.")
        return pq.read_table(path, columns=wanted, filters=filters or None).to_pandas()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; trace again.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); trace again.") from None


def read_curves(path: Path) -> dict[str, torch.Tensor]:
    """The curves of a trace or a part.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; trace again.") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); trace again.") from None
