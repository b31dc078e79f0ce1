"""Files are written whole or not at all: write to a temporary name in the same folder, then rename. Text, tables and JSON are
read by one rule each, and what is wrong with a file is one sentence."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from headscope.errors import DataError
from headscope.facts import said, shown

if TYPE_CHECKING:
    import pandas as pd

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it vanishes.

    The file has the mode that the user's umask gives a new one, whatever the library that writes it would choose
    (safetensors 0.8 makes files that only their owner reads).

    Raises:
        DataError: the folder cannot be made or written (read-only, disk full, a file in its place).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = _reason(error)
        full = getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in reason
        advice = "free some space, or choose another place" if full else "choose another place"
        raise DataError(
            f"{target}: cannot be written ({reason}); what stood under that name is unchanged; {advice}."
        ) from error
    finally:
        with suppress(OSError):  # a parent that is a file, say: the sentence above has said so
            temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Call `write(temporary_path)` and move the result to `path` in one step."""
    with whole_file(path) as temporary:
        write(temporary)
    return Path(path)


def write_csv(table: pd.DataFrame, path: str | os.PathLike[str], float_format: str | None = None) -> Path:
    """Write a table as CSV, whole or not at all; `float_format` such as "%.5g"."""
    return write_whole(path, lambda target: table.to_csv(target, index=False, float_format=float_format))


def write_parquet(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table as parquet, whole or not at all."""
    return write_whole(path, lambda target: table.to_parquet(target, index=False))


def _reason(error: BaseException) -> str:
    """In the system's words where it has some, without the path, which the sentence has."""
    return getattr(error, "strerror", None) or str(error)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Make sure before long work that `path` can be written at its end; what is there stays.

    Raises:
        DataError: a folder stands there, or its folder cannot be made or written.
    """
    target = Path(path)
    if target.is_dir():
        raise DataError(f"{target}: is a folder; name a file.")
    probe = target.with_name(f".{target.name}.{os.getpid()}.probe")
    write_text(probe, "")
    probe.unlink()
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all. Bytes of a path that are no UTF-8 (Python keeps them as lone surrogates) are
    written as `\\udce9`, which JSON reads back as they were."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read UTF-8 text, with or without a byte order mark; `what` the file is, for the sentence that says it is missing.

    Raises:
        DataError: the file is missing or is no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}; give the path of one that is there.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DataError(f"{path}: not a readable text file ({_reason(error)}); give a {what}.") from None
    if "\0" in text:
        raise DataError(f"{path}: not a text file, it holds zero bytes; give a {what} in UTF-8.")
    return text


class Line(NamedTuple):
    """A line of a file: `where` ("p.txt: line 3") begins every sentence about it."""

    where: str
    text: str


def read_lines(path: str | os.PathLike[str], what: str) -> list[Line]:
    r"""Lines of a UTF-8 text file, blank ones left out. \n, \r\n and \r end a line, and nothing else: not U+2028, U+2029,
    U+0085 or a form feed, which may stand inside JSON strings and prompts. A byte order mark at a line's start (files put
    together) is no part of it.

    Raises:
        DataError: the file is missing or is no text.
    """
    texts = (text.removeprefix("\ufeff") for text in read_text(path, what).split("\n"))  # Python has made \r and \r\n \n
    return [Line(f"{path}: line {number}", text) for number, text in enumerate(texts, 1) if text.strip()]


def read_table(path: str | os.PathLike[str], columns: Mapping[str, type] | Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV file. Only an empty cell is missing: names such as NA and None stay names.

    Args:
        path: of the file.
        columns: the columns that must be there, more are welcome; by name what each holds: str (a name in every row, 007 too),
            float (finite numbers or empty cells), object (anything).

    Raises:
        DataError: the file is missing, is no table, or lacks or garbles one of `columns`.
    """
    import pandas as pd

    wanted = _wanted(columns)
    text = io.StringIO(read_text(path, "table"))
    names = {name: str for name, kind in wanted.items() if kind is str}
    try:
        table = pd.read_csv(text, keep_default_na=False, na_values=[""], dtype=names)
    except ValueError as error:
        expected = f", expected one with {', '.join(wanted)}" if wanted else ""
        raise DataError(f"{path}: cannot be read as a CSV table ({said(error)}){expected}.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for an index
        raise DataError(f"{path}: its rows have more cells than its header; expected one a column.")
    return _checked(path, table, wanted)


def read_parquet(path: str | os.PathLike[str], columns: Mapping[str, type] | Iterable[str] = ()) -> pd.DataFrame:
    """Read a Parquet file; arguments and errors as those of `read_table`."""
    from headscope.reading import read_parquet as read_arrow, to_frame

    read = read_arrow(path, "table; give the path of one that is there", "a Parquet table")
    return _checked(path, to_frame(read), _wanted(columns))


def _wanted(columns: Mapping[str, type] | Iterable[str]) -> dict[str, type]:
    return dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, object)


def _checked(path: object, table: pd.DataFrame, wanted: Mapping[str, type]) -> pd.DataFrame:
    if lacking := [name for name in wanted if name not in table]:
        there = ", ".join(str(name) for name in table.columns) or "none"
        raise DataError(f"{path}: has no column {lacking[0]}; its columns are {there}.")
    for name, kind in wanted.items():
        if kind is float:
            table[name] = _numbers(path, name, table[name])
        elif kind is str and not (texts := table[name].map(lambda cell: isinstance(cell, str))).all():
            row = int(texts.to_numpy(dtype=bool).argmin())
            raise DataError(f"{path}: row {row + 1} has {name} {_cell(table[name], row)}, expected a name.")
    return table


def _numbers(path: object, name: str, column: pd.Series) -> pd.Series:
    import pandas as pd

    if pd.api.types.is_bool_dtype(column):
        column = column.astype(str)
    try:
        numbers = pd.to_numeric(column, errors="coerce")
    except TypeError:  # cells that are lists
        raise DataError(f"{path}: {name} holds {_cell(column, 0)}, expected numbers.") from None
    wrong = (numbers.isna() & column.notna()) | numbers.abs().eq(math.inf)
    if wrong.any():
        row = int(wrong.to_numpy(dtype=bool).argmax())
        raise DataError(f"{path}: row {row + 1} has {name} {_cell(column, row)}, expected a number.")
    return numbers


def _cell(column: pd.Series, row: int) -> str:
    return "an empty cell" if column.isna().iloc[row] else shown(column.iloc[row])


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Raises:
        DataError: the file is missing, is not JSON, or gives a name in one object twice.
    """
    text = read_text(path, "JSON file")
    try:
        return _parsed(text)
    except ValueError as error:
        raise DataError(f"{path}: not a readable JSON file ({said(error)}).") from None


def parse_line(line: Line, shape: str) -> Any:
    """The JSON value of a line of JSON lines; `shape` is what was expected, for the sentence.

    Raises:
        DataError: it is not JSON, or gives a name in one object twice.
    """
    try:
        return _parsed(line.text)
    except json.JSONDecodeError as error:
        raise DataError(f"{line.where} is not JSON ({error.msg}, column {error.colno}); expected {shape}.") from None
    except ValueError as error:
        raise DataError(f"{line.where} cannot be read ({said(error)}); expected {shape}.") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a name that stands twice JSON says nothing, and Python takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object gives {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def text_fault(value: object) -> str:
    """Why `value` is no text that a tokenizer takes and a file can hold; empty where it is one."""
    if not isinstance(value, str):
        return "no text"
    if not value.strip():
        return "empty"
    if "\0" in value:
        return "holding a zero byte"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holding {value[error.start]!r}, half a character or a byte that is no UTF-8"
    return ""
