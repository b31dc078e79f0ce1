"""Where an image token lies: raster order, rows of cells, perhaps a few tokens that end each row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from headscope.errors import HeadscopeError
from headscope.facts import check, optional, whole

MOST_TOKENS = 2**24  # of an image or a prompt that comes from a file; far above what any model has
_FIELDS = {"rows": whole(1, MOST_TOKENS), "cols": whole(1, MOST_TOKENS), "row_end": optional(whole(0, MOST_TOKENS))}


@dataclass(frozen=True)
class Geometry:
    """rows x cols cells in raster order; each row may be followed by `row_end` tokens that are no cells (Emu3, Lumina).

    Attributes:
        rows: of cells, from 1; a text has a single one.
        cols: cells of a row, from 1.
        row_end: tokens after each row that are no cells, from 0.

    Raises:
        HeadscopeError: on construction, a number out of range.

    Example: Geometry(2, 3, row_end=1) has 8 tokens: cells 0 1 2, row end 3, cells 4 5 6, row end 7.
    """

    rows: int
    cols: int
    row_end: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1 or self.row_end < 0:
            raise HeadscopeError(
                f"Geometry: {self.rows} rows, {self.cols} columns, {self.row_end} row-end tokens; expected at least one row "
                "and one column, and no negative number."
            )

    def __str__(self) -> str:
        return f"{self.rows} x {self.cols}"

    @property
    def row_length(self) -> int:
        """Tokens from one cell to the cell below it."""
        return self.cols + self.row_end

    @property
    def stride_row(self) -> int:
        """What a method that goes row by row takes for a row: a row, or in a text, which has a single one, the largest divisor
        of its length that is not above its square root (16 for 256 tokens)."""
        if self.rows > 1:
            return self.row_length
        return max(n for n in range(1, math.isqrt(self.row_length) + 1) if self.row_length % n == 0)

    @property
    def tokens(self) -> int:
        """Image tokens N, row ends included."""
        return self.rows * self.row_length

    @property
    def cells(self) -> int:
        """Tokens that are cells."""
        return self.rows * self.cols

    def coordinates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row int64 [N], column int64 [N] and is-a-cell bool [N] of every token."""
        tokens = torch.arange(self.tokens)
        column = tokens % self.row_length
        return tokens // self.row_length, column, column < self.cols

    def position(self, row: int, col: int) -> int:
        """Token index of a cell, in raster order.

        Args:
            row: 0 .. rows - 1, from the top.
            col: 0 .. cols - 1, from the left.
        """
        return row * self.row_length + col

    def strides(self) -> list[int]:
        """Every stride a policy may have: 1, the divisors of a row, a row, and its multiples up to the image."""
        row = self.row_length
        divisors = [n for n in range(1, row + 1) if row % n == 0]
        return divisors + [row * k for k in range(2, self.rows + 1)]

    def check_stride(self, stride: int) -> None:
        """Refuse a stride that is not in `strides()`.

        Args:
            stride: tokens between two choices of the heavy set.

        Raises:
            HeadscopeError: says which strides there are.
        """
        row = self.row_length
        if not (0 < stride <= self.tokens and (row % stride == 0 or stride % row == 0)):  # as `strides()`, for any image
            raise HeadscopeError(
                f"stride {stride}: expected 1, a divisor of a row ({self.row_length} tokens), a row, or a multiple of a row "
                f"up to {self.tokens}."
            )

    def check_lead(self, lead: int) -> None:
        """Refuse a lead that rows of this image can't have.

        Args:
            lead: columns between the newest tokens of two rows that are generated at once.

        Raises:
            HeadscopeError: says which leads there are.
        """
        row = self.row_length
        if not 1 <= lead <= row:
            raise HeadscopeError(f"lead {lead}: expected 1 to {row} columns, of which {row} generates row after row.")
        if self.rows == 1 and lead != row:
            raise HeadscopeError(
                f"lead {lead}: a text, or an image of a single row, has no rows to generate at once; leave it out."
            )

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {"rows": self.rows, "cols": self.cols, "row_end": self.row_end}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Geometry:
        """From JSON.

        Args:
            values: what `to_dict` wrote: rows, cols and, 0 where it lacks, row_end; it may come from a stranger's file.

        Raises:
            HeadscopeError: a number that is missing, none, or out of range; more than MOST_TOKENS tokens.
        """
        facts = check(values, _FIELDS, "geometry", HeadscopeError)
        found = cls(facts["rows"], facts["cols"], facts.get("row_end", 0))
        if found.tokens > MOST_TOKENS:
            raise HeadscopeError(f"geometry: {found.tokens:,} tokens, expected at most {MOST_TOKENS:,}.")
        return found
