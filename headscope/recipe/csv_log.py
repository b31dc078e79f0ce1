"""A log of training: one CSV line at a time, so that a stopped run keeps what it wrote."""

from __future__ import annotations

from pathlib import Path


class Journal:
    """Appends rows to a CSV file (first process only) and prints them."""

    def __init__(self, path: Path, rank: int = 0) -> None:
        self._path = path
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
        print("  ".join(f"{name} {cell}" for name, cell in zip(values, cells, strict=True)), flush=True)
