"""Reading and writing the files of a trace: one sentence for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from headscope.errors import DataError, HeadscopeError
from headscope.facts import FLAG, NUMBER, OBJECT, TEXT, TEXTS, Kind, check, clipped, optional, parsed, record, shown, whole
from headscope.geometry import Geometry
from headscope.reading import open_tensors, parquet_schema, read_bytes, read_parquet, to_frame
from headscope.storage import write_whole

BY_TOKEN = "prefix_by_token"  # a column of the parts: lists of numbers, which a table of statistics should not have
KEYS = ("sample", "stream", "layer", "head", "band")
_MOST_HEADS = 2**12  # far above every model there is
_NUMBERS = Kind(
    "null or a list of whole numbers",
    lambda value: value is None or (isinstance(value, list) and all(type(n) is int and 0 <= n < _MOST_HEADS for n in value)),
    required=False,
)
FACTS = {
    "model": TEXT,
    "architecture": TEXT,
    "weights": TEXT,
    "geometry": OBJECT,  # `Geometry.from_dict` knows its fields
    "layers": optional(whole(1, _MOST_HEADS)),
    "query_heads": optional(whole(1, _MOST_HEADS)),
    "kv_heads": optional(whole(1, _MOST_HEADS)),
    "samples": whole(1),
    "guidance": optional(NUMBER),
    "images": TEXT,
    "definitions": whole(0),
    "selection": record({"layers": _NUMBERS, "heads": _NUMBERS}),
    "streams": optional(TEXTS),
    "statistics": TEXTS,
    "cache": TEXT,
    "complete": FLAG,
}
_KIND = "a table of a trace"


def read_meta(path: Path) -> dict[str, Any]:
    """The facts of the trace folder `path`, finished or not.

    Raises:
        DataError: trace.json is missing, not readable, or one of FACTS is missing or of another type.
    """
    file = path / "trace.json"
    text = read_bytes(file, "file; trace again, or name a folder that holds a trace")
    found = parsed(text, str(file))
    if isinstance(found, dict) and "pictures" in found:  # its name before 0.2
        found.setdefault("images", found.pop("pictures"))
    meta = check(found, FACTS, str(file), advice="delete the folder and trace again")
    try:
        Geometry.from_dict(meta["geometry"])
    except HeadscopeError as error:
        raise DataError(f"{file}: {error}") from None
    return meta


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a parquet file, whole or not at all; bytes of floats lie split, which compresses them a fifth better."""
    made = pa.Table.from_pandas(table, preserve_index=False)
    at = made.schema.get_field_index("pieces")
    if at >= 0 and made.schema.types[at] == pa.list_(pa.null()):  # no image has a prefix
        made = made.set_column(at, "pieces", made["pieces"].cast(pa.list_(pa.string())))
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
        raise DataError(f"{path}: cannot be written ({error}); free some space, then go on with `resume`.") from error


def read_table(
    path: Path, columns: Sequence[str] | None = None, filters: list[tuple[str, str, Any]] | None = None
) -> pd.DataFrame:
    """A table of statistics; columns that are not asked for and rows that do not match are not read.

    Raises:
        DataError: missing, not readable, a table of something else, or without a column that is asked for.
    """
    there = column_names(path)
    wanted = None if columns is None else [*KEYS, *(name for name in columns if name not in KEYS)]
    if unknown := [name for name in (*(wanted or ()), *(f[0] for f in filters or ())) if name not in there]:
        raise DataError(f"{path}: has no column {', '.join(unknown)}; there are {', '.join(there)}.")
    table = read_parquet(path, "file; trace again", _KIND, wanted, filters)
    if empty := [name for name in KEYS if table[name].null_count]:
        raise DataError(f"{path}: column {empty[0]} has an empty cell, so it is no table of a trace.")
    return to_frame(table)


def column_names(path: Path) -> list[str]:
    """Columns of a table of statistics, in their order; errors as in `read_table`."""
    schema = parquet_schema(path, "file; trace again", _KIND)
    _check_columns(path, schema)
    return schema.names


def _check_columns(path: Path, schema: pa.Schema) -> None:
    """Raises DataError unless the keys and the statistics are there, each once and of its type."""
    if missing := [name for name in KEYS if name not in schema.names]:
        raise DataError(f"{path}: lacks {', '.join(missing)}, so it is no table of a trace; trace again.")
    for field in schema:
        if schema.names.count(field.name) > 1:
            raise DataError(f"{path}: has the column {shown(field.name)} twice, so it is no table of a trace.")
        if not _expected(field.name)(field.type):
            raise DataError(
                f"{path}: column {shown(field.name)} holds {clipped(str(field.type))}, so it is no table of a trace."
            )


def _expected(name: str) -> Callable[[pa.DataType], bool]:
    if name == "stream":
        return _is_text
    if name in KEYS:
        return pa.types.is_integer
    inner = {BY_TOKEN: pa.types.is_floating, "pieces": _is_text}.get(name)
    return pa.types.is_floating if inner is None else lambda kind: pa.types.is_list(kind) and inner(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_curves(path: Path) -> dict[str, torch.Tensor]:
    """The curves of a trace or a part, float32.

    Raises:
        DataError: missing, not readable, or of another type.
    """
    return read_sums(path)[0]


def read_sums(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The curves of a file, float32, and its metadata; errors as in `read_curves`."""
    with open_tensors(path, "file; trace again", "a file of curves") as file:
        names = list(file.keys())
        if other := [name for name in names if file.get_slice(name).get_dtype() != "F32"]:
            raise DataError(f"{path}: {shown(other[0])} is {file.get_slice(other[0]).get_dtype()}, expected curves in F32.")
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
