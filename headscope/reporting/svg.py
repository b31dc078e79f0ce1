"""Small drawings as SVG text: they scale, follow the page's light and dark colours, and tell their numbers on hover."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np


def drawing(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """An SVG element as wide as its column, but not blown up; `label` is what a screen reader says."""
    inner = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        f'style="max-width: {1.2 * width:g}px">{inner}</svg>'
    )


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "", extra: str = "") -> str:
    """A rectangle; `style` is a class, or a whole attribute such as `fill="..."`."""
    kind = style if "=" in style else f'class="{style}"'
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.4g}" y="{y:.4g}" width="{max(width, 0):.4g}" height="{height:.4g}" {kind} {extra}>{told}</rect>'


def text(x: float, y: float, words: str, style: str = "label", anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.5g}" y="{y:.5g}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def path(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points."""
    steps = " ".join(f"{'M' if i == 0 else 'L'}{x:.5g} {y:.5g}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}" class="{style}"/>'


def dot(x: float, y: float, style: str, title: str = "", radius: float = 3) -> str:
    """A point."""
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{radius:g}" class="{style}">{told}</circle>'


def heat(values: np.ndarray, x: float, y: float, cell: float, style: str = "heat") -> list[str]:
    """A grid of cells whose opacity is the square root of the share of the largest value; empty cells are left out."""
    top = float(values.max()) or 1.0
    parts = []
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            strength = float(values[row, column]) / top
            if strength > 0.001:
                title = f"{values[row, column]:.1%}"
                at = (x + column * cell, y + row * cell)
                parts.append(rect(*at, cell - 0.5, cell - 0.5, style, title, f'opacity="{strength**0.5:.3f}"'))
    return parts


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span a range."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** np.floor(np.log10(raw))
    step = float(next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw))
    first = np.ceil(low / step) * step
    return [float(value) for value in np.arange(first, high + step * 1e-6, step)]


class Axes:
    """A frame that turns numbers into places.

    Args:
        x, y: (low, high) of the data; log: whether y is logarithmic.
    """

    def __init__(
        self, width: float, height: float, x: tuple[float, float], y: tuple[float, float], *, log: bool = False
    ) -> None:
        self.width, self.height, self.x, self.y, self.log = width, height, x, y, log
        self.left, self.right, self.top, self.bottom = 52.0, 14.0, 24.0, 34.0

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies."""
        low, high = self.y
        if self.log:
            low, high, y = np.log10(low), np.log10(high), np.log10(max(y, self.y[0]))
        across = (x - self.x[0]) / max(self.x[1] - self.x[0], 1e-12)
        up = (y - low) / max(high - low, 1e-12)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - min(max(up, 0.0), 1.0) * (self.height - self.top - self.bottom),
        )

    def frame(self, x_label: str, y_label: str, form: str = "g") -> list[str]:
        """Grid lines and labels."""
        parts = []
        marks = self._log_marks() if self.log else ticks(*self.y)
        for value in marks:
            _, y = self.place(self.x[0], value)
            parts.append(path([(self.left, y), (self.width - self.right, y)], "grid"))
            parts.append(text(self.left - 6, y + 3.5, format(value, form), "tick", "end"))
        for value in ticks(*self.x, 5):
            x, _ = self.place(value, self.y[0])
            parts.append(text(x, self.height - self.bottom + 15, f"{value:g}", "tick", "middle"))
        parts.append(text(self.width - self.right, self.height - 3, x_label, "label", "end"))
        parts.append(text(0, 9, y_label, "label"))
        return parts

    def _log_marks(self) -> list[float]:
        decades = range(int(np.floor(np.log10(self.y[0]))), int(np.ceil(np.log10(self.y[1]))) + 1)
        marks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        return [mark for mark in marks if self.y[0] <= mark <= self.y[1]]
