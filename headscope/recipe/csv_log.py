"""A log of training: one CSV line at a time, so that a stopped run keeps what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """Appends rows to a CSV file (first process only) and prints them; to a file of JSON lines too, where one is named."""

    def __init__(self, path: Path, rank: int = 0, lines: Path | None = None, stage: str = "") -> None:
        self._path, self._lines, self._stage = path, lines, stage
        self._silent = rank != 0

    def write(self, **values: float | int) -> None:
        """Append one row; the first row ever also writes the header."""
        if self._silent:
            return
        cells = [f"{v:.5g}" if isinstance(v, float) else str(v) for v in values.values()]
        fresh = not self._path.exists()
        with self._path.open("a", encoding="utf-8") as file:
            if fresh:
                file.write(",".join(values) + "\n")
            file.write(",".join(cells) + "\n")
        if self._lines is not None:
            append_line(self._lines, {"stage": self._stage, **values})
        print("  ".join(f"{name} {cell}" for name, cell in zip(values, cells, strict=True)), flush=True)

    def note(self, **values: float | int | str) -> None:
        """Print what is said once, and append it to the file of JSON lines."""
        if self._silent:
            return
        if self._lines is not None:
            append_line(self._lines, {"stage": self._stage, **values})
        print("  ".join(f"{name} {value}" for name, value in values.items()), flush=True)


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
