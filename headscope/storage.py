"""Files are written whole or not at all: write to a temporary name in the same folder, then rename."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from headscope.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it vanishes.

    Raises:
        DataError: the folder cannot be made or written (read-only, disk full, a file in its place).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{target}: cannot be written ({reason}); what was there before is unchanged - "
            "free some space or choose another folder with --out."
        ) from error
    finally:
        with suppress(OSError):  # a parent that is a file, say: the sentence above has said so
            temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Call `write(temporary_path)` and move the result to `path` in one step."""
    with whole_file(path) as temporary:
        write(temporary)
    return Path(path)


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
    """Write `text` as UTF-8, whole or not at all."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
    except OSError as error:
        raise DataError(f"{path}: not a readable text file ({error.strerror or error}); give a {what}.") from None
    if "\0" in text:
        raise DataError(f"{path}: not a text file, it holds zero bytes; give a {what} in UTF-8.")
    return text


def read_table(path: str | os.PathLike[str], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV file. Only an empty cell is missing: names such as NA and None stay names.

    Raises:
        DataError: the file is missing, cannot be read, or lacks one of `columns`.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise DataError(f"{path}: no such table; the command that writes it has not run, or not to its end.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run the command that writes it again.") from None
    if lacking := [name for name in columns if name not in table]:
        raise DataError(f"{path}: has no column {lacking[0]}; delete it and run the command that writes it again.")
    return table


def json_fault(error: ValueError) -> str:
    """What is wrong with one line of JSON, without a line number of its own."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}).") from None
