"""The trace dataset: a folder, written while running (see parts.py), compacted at the end, read lazily.

heads.parquet       a row for each image, stream, layer, query head and band of rows (-1: all that was traced); a column a
                    statistic
prefix.parquet      a row for each image, layer and head of the conditional stream: attention to each token of the prompt
curves.safetensors  means over images, of the conditional stream: one tensor [layers, heads, ...] a curve (see the table of
                    statistics), and cache_divergence [layers, kv_heads, N]
samples.parquet     the images: prompts, seeds, tokens
trace.json          fingerprints, geometry, versions, what was selected, and `complete`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.facts import clipped, shown
from headscope.geometry import Geometry
from headscope.reading import is_there
from headscope.samples import Samples
from headscope.storage import write_json
from headscope.tracing.files import BY_TOKEN, KEYS, column_names, read_curves, read_meta, read_table, write_curves, write_table
from headscope.tracing.parts import Parts

WHOLE_IMAGE = -1  # the band of rows that holds all that was traced
NEEDED = ("footprint", "lag_mass")


class TraceDataset:
    """Reads a finished trace.

    Args:
        path: the folder that `trace` or `merge_traces` wrote.

    Raises:
        DataError: the folder is missing, no trace, or not finished.

    Example:
        >>> dataset = TraceDataset("runs/demo/trace")  # doctest: +SKIP
        >>> dataset.heads(columns=["entropy"], layer=[0, 1], stream="conditional")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        if not is_there(self.path / "trace.json"):
            raise DataError(f"{self.path}: holds no trace; make one with `headscope trace`.")
        self.meta: dict[str, Any] = read_meta(self.path)
        if not self.meta["complete"]:
            raise DataError(f"{self.path}: the trace was stopped before its end; trace again with `resume`.")

    def heads(self, columns: Sequence[str] | None = None, **filters: Any) -> pd.DataFrame:
        """sample, stream, layer, head, band (-1: all rows traced) and one float32 column a statistic.

        Args:
            columns: the statistics to read, None for all.
            filters: a value or a list of values for any column, such as `layer=[3, 4]`; `band` is -1 unless it is given
                (None: every band). What does not match is not read.

        Raises:
            DataError: an unknown column, a file that is not readable, or rows of what was not traced.
        """
        table = self._rows("heads.parquet", columns, {"band": WHOLE_IMAGE, **filters})
        if table.empty and not filters:
            raise DataError(f"{self.path / 'heads.parquet'}: has no row of whole images (band {WHOLE_IMAGE}); trace again.")
        return table

    def statistics(self) -> list[str]:
        """Names of the statistics in this trace, in the order of its columns."""
        return [name for name in column_names(self.path / "heads.parquet") if name not in KEYS]

    def curves(self) -> dict[str, torch.Tensor]:
        """float32 [layers, heads, ...] by name; `lag_mass` and `footprint` are always there.

        Raises:
            DataError: missing, not readable, incomplete, or of other layers and heads than were traced.
        """
        curves = self.kept_curves()
        return {**curves, "window_coverage": curves["lag_mass"].cumsum(-1)}

    def kept_curves(self) -> dict[str, torch.Tensor]:
        """The curves that are in the file; errors as in `curves`."""
        file = self.path / "curves.safetensors"
        curves = read_curves(file)
        if missing := [name for name in NEEDED if name not in curves]:
            raise DataError(f"{file}: lacks {', '.join(missing)}; trace again.")
        geometry = Geometry.from_dict(self.meta["geometry"])
        shapes = {"lag_mass": (geometry.tokens,), "footprint": (geometry.rows, 2 * geometry.row_length - 1)}
        for name, curve in curves.items():
            found, heads = tuple(curve.shape), "kv_heads" if name == "cache_divergence" else "heads"
            expected = (self._traced("layers"), self._traced(heads), *shapes.get(name, found[2:]))
            same = len(found) == len(expected) > 2 and all(m in (None, n) for n, m in zip(found, expected, strict=True))
            if not same:
                raise DataError(
                    f"{file}: {shown(name)} has shape {clipped(str(found))}, expected {expected} (layers, heads, values) by "
                    "trace.json."
                )
        return curves

    def _traced(self, name: str) -> int | None:
        """How many layers, heads or KV heads were traced; None where the trace does not say."""
        chosen = self.meta["selection"].get(name)
        return self.meta.get("query_heads" if name == "heads" else name) if chosen is None else len(chosen)

    def _rows(self, name: str, columns: Sequence[str] | None, filters: dict[str, Any]) -> pd.DataFrame:
        """Rows of a table that meet `filters`, all of them of what trace.json says was traced."""
        wanted: list[tuple[str, str, Any]] = [
            (column, "in", [*value]) if isinstance(value, (list, tuple, range, np.ndarray)) else (column, "==", value)
            for column, value in filters.items()
            if value is not None
        ]
        file = self.path / name
        table = read_table(file, columns, wanted)
        for key, total in (("sample", "samples"), ("layer", "layers"), ("head", "query_heads")):
            most = self.meta.get(total)
            least, last = table[key].min(), table[key].max()
            if most is not None and len(table) and not (least >= 0 and last < most):
                raise DataError(f"{file}: has rows of {key} {least} to {last}, expected 0 to {most - 1} by trace.json.")
        return table

    def words(self, **filters: Any) -> pd.DataFrame:
        """Attention to each word of the prompts: sample, layer, head, word (its place in the prompt), text, mass.

        Tokens that continue a word are added to it.

        Args:
            filters: a value or a list of values for `sample`, `layer` or `head`, such as `layer=[3, 4]`; what does not match
                is not read.

        Raises:
            DataError: a file that is not readable, rows of what was not traced, or masses that are not one a token.
        """
        table = self._rows("prefix.parquet", [BY_TOKEN], filters)
        every = self._rows("prefix.parquet", ["pieces"], {})
        named = every[every["pieces"].notna()].drop_duplicates("sample")
        pieces = {row.sample: [str(piece) for piece in row.pieces] for row in named.itertuples()}
        starts = {sample: _words(texts) for sample, texts in pieces.items()}
        rows = []
        for row in table.itertuples():
            masses = np.asarray(getattr(row, BY_TOKEN), dtype=np.float64)
            if row.sample not in pieces or masses.shape != (len(pieces[row.sample]),):
                raise DataError(
                    f"{self.path / 'prefix.parquet'}: does not hold one number for each token of the prompt of image "
                    f"{row.sample}."
                )
            for place, (text, first, stop) in enumerate(starts[row.sample]):
                rows.append((row.sample, row.layer, row.head, place, text, float(masses[first:stop].sum())))
        return pd.DataFrame(rows, columns=["sample", "layer", "head", "word", "text", "mass"])

    def by_token(self) -> pd.DataFrame:
        """Attention to each token of the prompts: the keys, `prefix_by_token`, and `pieces` in one row of each image."""
        return self._rows("prefix.parquet", [BY_TOKEN, "pieces"], {})

    def samples(self) -> Samples:
        """The images that were traced.

        Raises:
            DataError: missing, not readable, or of another number than were traced.
        """
        file = self.path / "samples.parquet"
        found = Samples.load(file)
        if len(found) != self.meta["samples"]:
            raise DataError(f"{file}: holds {len(found)} images, expected {self.meta['samples']} by trace.json.")
        return found

    def damage(self) -> DataError | None:
        """The first of the folder's files that is missing or cannot be read."""
        try:
            self.heads()
            self.by_token()
            self.curves()
            self.samples()
        except DataError as error:
            return error
        return None


def compact(path: Path, parts: Parts) -> None:
    """Join the parts into the files of a finished trace, then remove them."""
    table, curves = parts.joined()
    write_finished(path, table, curves, read_meta(path))
    parts.remove()


def write_finished(path: Path, table: pd.DataFrame, curves: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """The files of a finished trace but for samples.parquet; trace.json comes last, and says that it is complete."""
    by_token = table[table[BY_TOKEN].notna()]
    write_table(path / "prefix.parquet", by_token[["sample", "stream", "layer", "head", "band", BY_TOKEN, "pieces"]])
    write_table(path / "heads.parquet", table.drop(columns=[BY_TOKEN, "pieces"]))
    write_curves(path / "curves.safetensors", curves)
    write_json(path / "trace.json", {**meta, "complete": True})


def _words(pieces: list[str]) -> list[tuple[str, int, int]]:
    """(text, first token, last + 1) of each word: a token begins one if it carries the mark of a space, or none does.

    By hand, because a trace keeps the tokens' strings and not the `BatchEncoding` that knows their words.
    """
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
