"""Results as lines of JSON, each on the disk before the next is measured."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.storage import read_text

RESULTS = "results.jsonl"
Record = dict[str, Any]


def append(folder: Path, record: Record) -> None:
    """Add one line to the results of a folder, flushed and on the disk.

    Args:
        folder: of the results.
        record: texts, numbers, and lists and records of them; a number that is none is written as null.
    """
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Record]:
    """All lines of a folder; a last one that was cut off when its writer was killed is left out.

    Raises:
        DataError: there is no such file, or another line is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise DataError(f"{path}: not there; measure first, with `headscope bench decode --device cuda`.")
    lines = [line for line in read_text(path, "results").splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise DataError(f"{path}: line {number} is no JSON record; remove it, and the others are read.") from None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
