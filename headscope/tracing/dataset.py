"""The trace dataset: a folder, written a part a picture while running, compacted at the end, read lazily.

parts/000017.parquet, parts/000017.safetensors   while running
heads.parquet       a row for each picture, stream, layer, query head and band of rows; a column a statistic
curves.safetensors  lag_mass [layers, heads, N] and footprint [layers, heads, rows, 2 cols - 1], means over pictures of the
                    conditional stream
samples.parquet     the pictures: prompts, seeds, tokens
trace.json          fingerprints, geometry, versions, and `complete`
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.models.samples import Samples
from headscope.storage import read_json, write_json, write_whole

CURVES = ("lag_mass", "footprint")
KEYS = ("sample", "stream", "layer", "head", "band")
FACTS = ("model", "architecture", "weights", "geometry", "samples", "pictures", "definitions", "complete")


class TraceDataset:
    """Reads a finished trace.

    Raises:
        DataError: the folder is missing, no trace, or not finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "trace.json").is_file():
            raise DataError(f"{self.path}: holds no trace; make one with `headscope trace`.")
        self.meta: dict[str, Any] = read_meta(self.path)
        if not self.meta["complete"]:
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

    def damage(self) -> DataError | None:
        """The first of the folder's files that is missing or cannot be read."""
        try:
            self.heads()
            self.curves()
            self.samples()
        except DataError as error:
            return error
        return None


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
                self._check(table, curves)
            except DataError:
                self.damaged.append(str(table.with_suffix("")))
                numbers.append(number)
        return numbers

    def write(self, number: int, table: pd.DataFrame, curves: dict[str, torch.Tensor]) -> None:
        """Write one part, whole or not at all."""
        files = self._files(number)
        _write_table(files[0], table)
        _write_curves(files[1], curves, _digests(files[0], curves))

    def _check(self, table: Path, curves: Path) -> None:
        """Raises DataError if a file is damaged or the two are not of one writing; no format notices a changed byte."""
        read_table(table)
        found = _digests(table, read_curves(curves))
        with safe_open(curves, "pt") as file:
            if file.metadata() != found:
                raise DataError(f"{curves}: damaged (other check sums than when it was written); trace again.")

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
        _write_table(self.path / "heads.parquet", heads)
        _write_curves(self.path / "curves.safetensors", means)
        write_json(self.path / "trace.json", {**read_meta(self.path), "complete": True})
        # The whole folder: a run that was killed may have left a temporary file in it.
        shutil.rmtree(self.path / "parts", ignore_errors=True)


def read_meta(path: Path) -> dict[str, Any]:
    """The facts of the trace folder `path`, finished or not.

    Raises:
        DataError: trace.json is missing, damaged, or lacks one of FACTS.
    """
    meta = read_json(path / "trace.json")
    if missing := [name for name in FACTS if not isinstance(meta, dict) or name not in meta]:
        raise DataError(f"{path / 'trace.json'}: lacks {', '.join(missing)}; delete the folder and trace again.")
    return dict(meta)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_whole(path, lambda target: table.to_parquet(target, index=False))


def _write_curves(path: Path, curves: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    try:
        write_whole(path, lambda target: save_file(curves, target, metadata))
    except SafetensorError as error:  # what a full disk is to safetensors; it is no OSError
        raise DataError(f"{path}: cannot be written ({error}); free some space, then go on with --resume.") from error


def _digests(table: Path, curves: dict[str, torch.Tensor]) -> dict[str, str]:
    numbers = hashlib.sha256()
    for name in sorted(curves):
        numbers.update(curves[name].contiguous().numpy().tobytes())
    return {"table": hashlib.sha256(table.read_bytes()).hexdigest(), "curves": numbers.hexdigest()}


def read_table(path: Path) -> pd.DataFrame:
    """A table of statistics.

    Raises:
        DataError: missing, damaged, or a table of something else.
    """
    try:
        table = pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; trace again.") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}); trace again.") from None
    if missing := [name for name in KEYS if name not in table.columns]:
        raise DataError(f"{path}: lacks {', '.join(missing)}, so it is no table of a trace; trace again.")
    return table


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
        raise DataError(f"{path}: damaged ({error}); trace again.") from None
    if missing := [name for name in CURVES if name not in curves]:
        raise DataError(f"{path}: lacks {', '.join(missing)}; trace again.")
    return curves
