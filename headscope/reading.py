"""Opening files that somebody else may have made: what is missing, forbidden, and something else are three sentences."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from headscope.errors import DataError
from headscope.facts import said

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def opened(path: str | os.PathLike[str], missing: str) -> BinaryIO:
    """Open an ordinary file to read its bytes.

    Args:
        path: of the file.
        missing: ends the sentence "PATH: no such ..." where there is none: what it is, and how to get one.

    Raises:
        DataError: there is no such file, it may not be read by this user, or it is a folder or a device.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path}: is a folder, expected a file.")
        if not stat.S_ISREG(mode):  # a pipe would wait for ever
            raise DataError(f"{path}: is a pipe or a device, expected a file that can be read twice.")
        return Path(path).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such {missing}.") from None
    except PermissionError as error:
        raise DataError(
            f"{path}: not readable by this user ({error.strerror or said(error)}); ask its owner for the right to read it."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or said(error)}).") from None


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether something stands there, or may: in a folder that this user may not look into nobody knows."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def read_bytes(path: str | os.PathLike[str], missing: str) -> bytes:
    """All bytes of a file; errors as in `opened`."""
    with opened(path, missing) as file:
        try:
            return file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or said(error)}).") from None


def open_tensors(path: str | os.PathLike[str], missing: str, kind: str) -> safe_open:
    """Open a safetensors file: its header is checked, no tensor is read.

    Args:
        path: of the file.
        missing: see `opened`.
        kind: what the file should be, such as "a policy file".

    Raises:
        DataError: see `opened`; or it is no safetensors file.
    """
    opened(path, missing).close()  # safetensors says of every file that it cannot open that there is none
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not {kind} (not readable as safetensors: {said(error)}).") from None


def read_parquet(
    path: str | os.PathLike[str],
    missing: str,
    kind: str,
    columns: Sequence[str] | None = None,
    filters: list[tuple[str, str, Any]] | None = None,
) -> pa.Table:
    """Read a parquet file, and nothing but that file: names of folders such as `layer=3` add no columns.

    Args:
        path: of the file.
        missing: see `opened`.
        kind: what the file should be, such as "a file of recorded images".
        columns: the ones to read, None for all.
        filters: (column, comparison, value) that rows have to meet.

    Raises:
        DataError: see `opened`; or it is no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _of_parquet(path, missing, kind), pa.OSFile(os.fspath(path)) as file:
        return pq.read_table(file, columns=columns, filters=filters or None)


def parquet_schema(path: str | os.PathLike[str], missing: str, kind: str) -> pa.Schema:
    """Columns and metadata of a parquet file; arguments and errors as in `read_parquet`."""
    import pyarrow.parquet as pq

    with _of_parquet(path, missing, kind):
        return pq.read_schema(os.fspath(path))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """The columns as pandas has them; what the file's metadata says of pandas' indices, which anybody can write, is ignored."""
    return table.replace_schema_metadata(None).to_pandas()


@contextmanager
def _of_parquet(path: str | os.PathLike[str], missing: str, kind: str) -> Iterator[None]:
    import pyarrow as pa

    opened(path, missing).close()
    try:
        yield
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{path}: not {kind} (not readable as parquet: {said(error)}).") from None
