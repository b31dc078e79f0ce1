"""The trace dataset: a folder, written while running (see parts.py), compacted at the end, read lazily.

heads.parquet       a row for each picture, stream, layer, query head and band of rows (-1: all that was traced); a column a
                    statistic
prefix.parquet      a row for each picture, layer and head of the conditional stream: attention to each token of the prompt
curves.safetensors  means over pictures, of the conditional stream: one tensor [layers, heads, ...] a curve (see the table of
                    statistics), and cache_divergence [layers, kv_heads, N]
samples.parquet     the pictures: prompts, seeds, tokens
trace.json          fingerprints, geometry, versions, what was selected, and `complete`
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headscope.errors import DataError
from headscope.models.samples import Samples
from headscope.storage import write_json
from headscope.tracing.files import read_curves, read_meta, read_table, write_curves, write_table
from headscope.tracing.parts import Parts

BY_TOKEN = "prefix_by_token"  # a column of the parts: lists of numbers, which a table of statistics should not have
NEEDED = ("footprint", "lag_mass")


class TraceDataset:
    """Reads a finished trace.

    Raises:
        DataError: the folder is missing, no trace, or not finished.

    Example:
        >>> dataset = TraceDataset("runs/demo/trace")  # doctest: +SKIP
        >>> dataset.heads(columns=["entropy"], layer=[0, 1], stream="conditional")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "trace.json").is_file():
            raise DataError(f"{self.path}: holds no trace; make one with `headscope trace`.")
        self.meta: dict[str, Any] = read_meta(self.path)
        if not self.meta["complete"]:
            raise DataError(f"{self.path}: the trace was stopped before its end; go on with `headscope trace ... --resume`.")

    def heads(self, columns: Sequence[str] | None = None, **filters: Any) -> pd.DataFrame:
        """sample, stream, layer, head, band (-1: all rows traced) and one float32 column a statistic.

        Args:
            columns: the statistics to read, None for all. filters: a value or a list of values for any column, such as
                `layer=[3, 4]`; `band` is -1 unless it is given (None: every band). What does not match is not read.

        Raises:
            DataError: an unknown column, or a damaged file.
        """
        filters.setdefault("band", -1)
        wanted: list[tuple[str, str, Any]] = [
            (name, "in", [*value]) if isinstance(value, (list, tuple, range, np.ndarray)) else (name, "==", value)
            for name, value in filters.items()
            if value is not None
        ]
        return read_table(self.path / "heads.parquet", columns, wanted)

    def statistics(self) -> list[str]:
        """Names of the statistics in this trace, in the order of its columns."""
        file = self.path / "heads.parquet"
        try:
            names = pq.read_schema(file).names
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read ({str(error).splitlines()[0]}); trace again.") from None
        return [name for name in names if name not in ("sample", "stream", "layer", "head", "band")]

    def curves(self) -> dict[str, torch.Tensor]:
        """float32 [layers, heads, ...] by name; `lag_mass` and `footprint` are always there.

        Raises:
            DataError: missing, damaged or incomplete.
        """
        file = self.path / "curves.safetensors"
        curves = read_curves(file)
        if missing := [name for name in NEEDED if name not in curves]:
            raise DataError(f"{file}: lacks {', '.join(missing)}; trace again.")
        return {**curves, "window_coverage": curves["lag_mass"].cumsum(-1)}

    def words(self, **filters: Any) -> pd.DataFrame:
        """Attention to each word of the prompts: sample, layer, head, word (its place in the prompt), text, mass.

        Tokens that continue a word are added to it. Filters as in `heads`.
        """
        table = read_table(
            self.path / "prefix.parquet",
            None,
            [(n, "in", [*v]) if isinstance(v, (list, tuple, range)) else (n, "==", v) for n, v in filters.items()] or None,
        )
        pieces = pq.read_table(self.path / "prefix.parquet", columns=["sample", "pieces"]).to_pandas()
        named = pieces[pieces["pieces"].notna()].drop_duplicates("sample")
        starts = {row.sample: _words(list(row.pieces)) for row in named.itertuples()}
        rows = []
        for row in table.itertuples():
            masses = np.asarray(getattr(row, BY_TOKEN), dtype=np.float64)
            for place, (text, first, stop) in enumerate(starts[row.sample]):
                rows.append((row.sample, row.layer, row.head, place, text, float(masses[first:stop].sum())))
        return pd.DataFrame(rows, columns=["sample", "layer", "head", "word", "text", "mass"])

    def samples(self) -> Samples:
        """The pictures that were traced."""
        return Samples.load(self.path / "samples.parquet")

    def damage(self) -> DataError | None:
        """The first of the folder's files that is missing or cannot be read."""
        try:
            self.heads()
            read_table(self.path / "prefix.parquet")
            self.curves()
            self.samples()
        except DataError as error:
            return error
        return None


def compact(path: Path, parts: Parts) -> None:
    """Join the parts into the files of a finished trace, then remove them."""
    table, curves = parts.joined()
    write_finished(path, table, curves, read_meta(path))
    # The whole folder: a run that was killed may have left a temporary file in it.
    shutil.rmtree(path / "parts", ignore_errors=True)


def write_finished(path: Path, table: pd.DataFrame, curves: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """The files of a finished trace but for samples.parquet; trace.json comes last, and says that it is complete."""
    by_token = table[table[BY_TOKEN].notna()]
    write_table(path / "prefix.parquet", by_token[["sample", "stream", "layer", "head", "band", BY_TOKEN, "pieces"]])
    write_table(path / "heads.parquet", table.drop(columns=[BY_TOKEN, "pieces"]))
    write_curves(path / "curves.safetensors", curves)
    write_json(path / "trace.json", {**meta, "complete": True})


def _words(pieces: list[str]) -> list[tuple[str, int, int]]:
    """(text, first token, last + 1) of each word: a token begins one if it carries the mark of a space, or none does."""
    marks = ("Ġ", "▁")
    marked = any(piece.startswith(marks) for piece in pieces)
    found: list[tuple[str, int, int]] = []
    for place, piece in enumerate(pieces):
        text = piece.lstrip("".join(marks))
        if marked and found and not piece.startswith(marks) and text.isalnum() and found[-1][0].isalnum():
            before, first, _ = found[-1]
            found[-1] = (before + text, first, place + 1)
        else:
            found.append((text, place, place + 1))
    return found
