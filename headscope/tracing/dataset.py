"""The trace dataset: a folder, written a part a picture while running, compacted at the end, read lazily.

    parts/000017.parquet, parts/000017.safetensors   while running
    heads.parquet       a row for each picture, stream, layer, query head and band of rows; a column a statistic
    curves.safetensors  lag_mass [layers, heads, N] and footprint [layers, heads, rows, 2 cols - 1], means over pictures of the
                        conditional stream
    samples.parquet     the pictures: prompts, seeds, tokens
    trace.json          fingerprints, geometry, versions, and `complete`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.models.samples import Samples
from headscope.storage import read_json, write_json, write_whole

CURVES = ("lag_mass", "footprint")


class TraceDataset:
    """Reads a finished trace.

    Raises:
        DataError: the folder is missing, no trace, or not finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "trace.json").is_file():
            raise DataError(f"{self.path}: holds no trace; make one with `headscope trace`.")
        self.meta: dict[str, Any] = read_json(self.path / "trace.json")
        if not self.meta.get("complete"):
            raise DataError(f"{self.path}: the trace was stopped before its end; go on with `headscope trace ... --resume`.")

    def heads(self) -> pd.DataFrame:
        """sample, stream, layer, head, band (-1: the whole image) and one float32 column a statistic."""
        return read_table(self.path / "heads.parquet")

    def curves(self) -> dict[str, torch.Tensor]:
        """lag_mass float32 [layers, heads, N] and footprint float32 [layers, heads, rows, 2 cols - 1]."""
        return read_curves(self.path / "curves.safetensors")

    def samples(self) -> Samples:
        """The pictures that were traced."""
        return Samples.load(self.path / "samples.parquet")


class Parts:
    """The parts of a trace that is being written."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.damaged: list[str] = []

    def _files(self, number: int) -> tuple[Path, Path]:
        stem = self.path / "parts" / f"{number:06d}"
        return stem.with_suffix(".parquet"), stem.with_suffix(".safetensors")

    def missing(self) -> list[int]:
        """Numbers of the parts to do; a part that cannot be read is named in `damaged` and is to be done again."""
        numbers = []
        for number in range(self.count):
            table, curves = self._files(number)
            if not (table.exists() and curves.exists()):
                numbers.append(number)
                continue
            try:
                read_table(table)
                read_curves(curves)
            except DataError:
                self.damaged.append(str(table.with_suffix("")))
                numbers.append(number)
        return numbers

    def write(self, number: int, table: pd.DataFrame, curves: dict[str, torch.Tensor]) -> None:
        """Write one part, whole or not at all."""
        files = self._files(number)
        write_whole(files[0], lambda target: table.to_parquet(target, index=False))
        write_whole(files[1], lambda target: save_file(curves, target))

    def compact(self) -> None:
        """Join the parts into heads.parquet and curves.safetensors, then remove them."""
        tables, sums = [], dict[str, torch.Tensor]()
        for number in range(self.count):
            files = self._files(number)
            tables.append(read_table(files[0]))
            for name, value in read_curves(files[1]).items():
                sums[name] = sums[name] + value if name in sums else value
        heads = pd.concat(tables, ignore_index=True)
        means = {name: (value / self.count).contiguous() for name, value in sums.items()}
        write_whole(self.path / "heads.parquet", lambda target: heads.to_parquet(target, index=False))
        write_whole(self.path / "curves.safetensors", lambda target: save_file(means, target))
        write_json(self.path / "trace.json", {**read_json(self.path / "trace.json"), "complete": True})
        for number in range(self.count):
            for file in self._files(number):
                file.unlink(missing_ok=True)
        (self.path / "parts").rmdir()


def read_table(path: Path) -> pd.DataFrame:
    """A table of statistics.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; trace again.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and trace again.") from None


def read_curves(path: Path) -> dict[str, torch.Tensor]:
    """The curves of a trace or a part.

    Raises:
        DataError: missing, damaged or incomplete.
    """
    try:
        curves = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; trace again.") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and trace again.") from None
    if missing := [name for name in CURVES if name not in curves]:
        raise DataError(f"{path}: lacks {', '.join(missing)}; delete it and trace again.")
    return curves
