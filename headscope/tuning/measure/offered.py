"""The sizes that a table offers to every head, the most telling first; `default_options` says how they were chosen."""

from __future__ import annotations

# How much of a fading score is left after a quarter of a row, and of one that fades fast.
FADE, FAST = 0.85, 0.6


def of_one(row: int) -> list[tuple[int, int, float]]:
    """Window, heavy and decay, where heads have one number of bits.

    Args:
        row: tokens of a row.
    """
    return [
        (1, 0, 1.0),
        (row + 2, 0, 1.0),
        (row + 2, 2 * row, FADE),
        (4 * row, 0, 1.0),
        (row + 2, 6 * row, FADE),
        (2 * row + 2, 0, 1.0),
        (row + 2, row // 2, FADE),
        (8 * row, 0, 1.0),
        (row + 2, 6 * row, 1.0),
        (2 * row + 2, 4 * row, FADE),
        (2 * row + 2, row, FADE),
        (row + 2, 12 * row, FADE),
        (row + 2, 2 * row, 1.0),
        (2, row, FADE),
        (row // 4, 0, 1.0),
        (2, row // 4, FADE),
    ]


def of_three(row: int, most: int) -> list[tuple[int, int, float, int]]:
    """Window, heavy, decay and bits, where heads may have 16, 8 or 4.

    Args:
        row: tokens of a row.
        most: tokens that a window may have, which are all.
    """
    return [
        (1, 0, 1.0, 4),
        (2 * row + 2, 4 * row, FADE, 8),
        (row + 2, 0, 1.0, 8),
        (most, 0, 1.0, 8),
        (row + 2, 6 * row, 1.0, 4),
        (most, 0, 1.0, 4),
        (row + 2, row, FAST, 4),
        (row + 2, 0, 1.0, 4),
        (row + 2, 0, 1.0, 16),
        (row + 2, 9 * row, FADE, 8),
        (row + 2, 4 * row, FAST, 4),
        (12 * row, 0, 1.0, 4),
        (2 * row + 2, 2 * row, FADE, 8),
        (1, 0, 1.0, 16),
        (3 * row + 2, 0, 1.0, 4),
        (row + 2, 6 * row, 1.0, 8),
        (row + 2, 6 * row, FADE, 4),
        (8 * row, 0, 1.0, 4),
        (2 * row + 2, 0, 1.0, 8),
        (2, row // 4, FADE, 4),
        (row + 2, 12 * row, FADE, 8),
        (row + 2, 2 * row, 1.0, 8),
        (2 * row + 2, 2 * row, FADE, 16),
        (12 * row, 0, 1.0, 8),
        (row + 2, 6 * row, FADE, 8),
        (row // 2, row, FADE, 4),
        (row + 2, row // 2, FADE, 16),
        (2 * row + 2, 2 * row, FADE, 4),
        (2 * row + 2, 0, 1.0, 4),
        (row // 4, 0, 1.0, 4),
        (row + 2, row // 2, 1.0, 8),
        (row + 2, 9 * row, FADE, 4),
        (4 * row, 0, 1.0, 8),
        (row + 2, 2 * row, 1.0, 4),
        (1, 0, 1.0, 8),
        (row // 2, 0, 1.0, 4),
        (6 * row, 0, 1.0, 8),
        (8 * row, 0, 1.0, 8),
        (row + 2, row // 2, 1.0, 16),
        (row + 2, row // 2, FADE, 4),
        (row + 2, 4 * row, FADE, 4),
        (2 * row + 2, 0, 1.0, 16),
    ]


def of_ends(row: int) -> list[tuple[int, int, float, int]]:
    """Window, heavy, decay and bits of heads that keep two tokens of the prompt.

    Args:
        row: tokens of a row.
    """
    return [
        (row + 2, 0, 1.0, 8),
        (row + 2, 0, 1.0, 4),
        (1, 0, 1.0, 8),
        (3 * row + 2, 0, 1.0, 4),
        (2 * row + 2, 0, 1.0, 8),
        (2 * row + 2, 0, 1.0, 4),
        (row // 2, row, FADE, 4),
        (4 * row, 0, 1.0, 8),
    ]
