"""What of a model is traced."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from headscope.errors import DataError
from headscope.geometry import Geometry

STREAMS = ("conditional", "unconditional")


@dataclass(frozen=True)
class Selection:
    """Which layers, heads and queries a trace looks at; the default is everything.

    Attributes:
        layers: numbers of layers, None for all.
        heads: numbers of query heads, in every layer, None for all.
        rows: (first, last + 1) rows of the image whose queries are asked, None for all.
        streams: of "conditional" and "unconditional"; the second exists only under guidance.
        every: ask every n-th query of those; 1 asks all. Sums are then means over fewer queries, and as many times cheaper.
        band_count: parts of the rows that get statistics of their own beside those of the whole image; 0 for none.
        full: the whole list of statistics; what it adds sorts every query's attention.
        sort_every: of the sampled queries, every n-th one is sorted.

    Raises:
        DataError: a number that is out of its range.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None
    streams: tuple[str, ...] = STREAMS
    every: int = 1
    band_count: int = 0
    full: bool = False
    sort_every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or self.sort_every < 1 or self.band_count < 0:
            raise DataError(
                f"every {self.every}, sort_every {self.sort_every}, bands {self.band_count}: expected at least 1, 1 and 0."
            )
        if not self.streams or not set(self.streams) <= set(STREAMS):
            raise DataError(f"streams {', '.join(self.streams) or 'none'}: expected some of {', '.join(STREAMS)}.")
        for name, numbers in (("layers", self.layers), ("heads", self.heads)):
            if numbers is not None and (not numbers or min(numbers) < 0):
                raise DataError(f"{name} {numbers}: expected at least one number, none of them negative.")
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise DataError(f"rows {self.rows[0]}..{self.rows[1]}: expected a first row and a later end.")

    @property
    def everything(self) -> bool:
        """Whether every query of every head is asked, in the layers that are."""
        return self.heads is None and self.rows is None and self.every == 1

    def check(self, layers: int, heads: int, rows: int) -> None:
        """Refuse layers, heads or rows that the model does not have.

        Args:
            layers: of the model.
            heads: query heads of a layer.
            rows: of the image.

        Raises:
            DataError: a number that is not below these; names it.
        """
        for name, numbers, there in (("layer", self.layers, layers), ("head", self.heads, heads)):
            if numbers is not None and max(numbers) >= there:
                raise DataError(f"{name} {max(numbers)}: the model has {there}, numbered 0 to {there - 1}.")
        if self.rows is not None and self.rows[1] > rows:
            raise DataError(f"row {self.rows[1] - 1}: the image has {rows} rows, numbered 0 to {rows - 1}.")

    def bands(self, rows: int) -> list[range]:
        """Bands of rows; their union is what is traced, and the whole image's statistics are of their sum.

        Args:
            rows: of the image.
        """
        first, stop = self.rows or (0, rows)
        count = min(max(self.band_count, 1), stop - first)
        edges = [first + round((stop - first) * k / count) for k in range(count + 1)]
        return [range(a, b) for a, b in itertools.pairwise(edges)]

    def queries(self, geometry: Geometry, rows: range, fed: int) -> torch.Tensor:
        """int64 [queries]: the image tokens that are asked, by their place in the image.

        Args:
            geometry: of the image.
            rows: a band, see `bands`.
            fed: image tokens that the model is fed, from the first; N - 1 when an image is traced, as nothing follows the last.
        """
        first = rows.start * geometry.row_length
        asked = torch.arange(first, min(rows.stop * geometry.row_length, fed))
        return asked[asked % self.every == 0]

    def to_dict(self) -> dict[str, object]:
        """For JSON, in which a tuple is a list."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
