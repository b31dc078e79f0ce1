"""Small drawings as SVG text: they scale, follow the page's light and dark colours, and tell their numbers on hover."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

import numpy as np


def drawing(width: float, height: float, parts: Sequence[str], label: str, style: str = "") -> str:
    """An SVG element as wide as its column, but not blown up; `label` is what a screen reader says."""
    inner = "".join(parts)
    kind = f'class="{style}" ' if style else ""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" {kind}role="img" aria-label="{escape(label)}" '
        f'style="max-width: {1.15 * width:g}px">{inner}</svg>'
    )


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "", opacity: float = 1.0) -> str:
    """A rectangle of the class `style`."""
    size = f'width="{max(width, 0):.4g}" height="{max(height, 0):.4g}"'
    faded = f' opacity="{opacity:.3g}"' if opacity < 1 else ""
    return f'<rect x="{x:.5g}" y="{y:.5g}" {size} class="{style}"{faded}{_closed("rect", title)}'


def text(x: float, y: float, words: str, style: str = "label", anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.5g}" y="{y:.5g}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def path(points: Sequence[tuple[float, float]], style: str, title: str = "") -> str:
    """A line through points."""
    steps = " ".join(f"{'M' if i == 0 else 'L'}{x:.5g} {y:.5g}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}" class="{style}"{_closed("path", title)}'


def dot(x: float, y: float, style: str, title: str = "", radius: float = 3) -> str:
    """A point."""
    return f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{radius:.3g}" class="{style}"{_closed("circle", title)}'


def group(parts: Sequence[str], title: str) -> str:
    """Parts that share one hover title."""
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def _closed(name: str, title: str) -> str:
    return f"><title>{escape(title)}</title></{name}>" if title else "/>"


def heat(values: np.ndarray, cell: float, style: str = "heat", levels: int = 24) -> list[str]:
    """A grid of cells whose opacity is the square root of the share of the largest value; empty cells are left out.

    Cells of one of `levels` opacities are one path: a 24 x 47 footprint takes 20 KB instead of 120.
    """
    top = float(values.max()) or 1.0
    paths: dict[int, list[str]] = defaultdict(list)
    side = f"{max(cell - 0.5, 0.4 * cell):.3g}"
    for row, column in zip(*np.nonzero(values > 0.001 * top), strict=True):
        level = int(np.ceil(levels * (float(values[row, column]) / top) ** 0.5))
        paths[level].append(f"M{column * cell:.4g} {row * cell:.4g}h{side}v{side}h-{side}z")
    return [f'<path d="{"".join(d)}" class="{style}" opacity="{level / levels:.3g}"/>' for level, d in sorted(paths.items())]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that span a range."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** np.floor(np.log10(raw))
    step = float(next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw))
    first = np.ceil(low / step) * step
    return [float(value) for value in np.arange(first, high + step * 1e-6, step)]


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights by as little as a simple sweep can until they lie `gap` apart, inside low .. high where they fit.

    Example: apart([10, 12, 40], 10, 0, 50) is [10, 20, 40].
    """
    order = np.argsort(np.asarray(places), kind="stable")
    moved = [0.0] * len(order)
    last = low - gap
    for index in order:
        last = max(float(places[index]), last + gap)
        moved[index] = last
    limit = high
    for index in reversed(order):  # what was pushed out at the end pushes back
        limit = min(moved[index], limit)
        moved[index] = limit
        limit -= gap
    return moved


class Axes:
    """A frame that turns numbers into places.

    Args:
        x, y: (low, high) of the data. log: whether y is logarithmic. right: room for labels at the ends of lines.
    """

    def __init__(
        self,
        width: float,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        log: bool = False,
        right: float = 14.0,
    ) -> None:
        self.width, self.height, self.x, self.y, self.log = width, height, x, y, log
        self.left, self.right, self.top, self.bottom = 46.0, right, 26.0, 36.0

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies; a point outside lies on the edge."""
        low, high = self.y
        if self.log:
            low, high, y = np.log10(low), np.log10(high), np.log10(max(y, self.y[0]))
        across = (x - self.x[0]) / max(self.x[1] - self.x[0], 1e-12)
        up = (y - low) / max(high - low, 1e-12)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - min(max(up, 0.0), 1.0) * (self.height - self.top - self.bottom),
        )

    def frame(
        self,
        x_label: str,
        y_label: str,
        form: str = "g",
        factors: Sequence[float] = (1, 2, 5),
        marks: Sequence[tuple[float, str]] | None = None,
    ) -> list[str]:
        """Grid lines and labels; `factors` of each decade are marked where y is logarithmic; `marks`: places of x to name."""
        parts = []
        for value in self._log_marks(factors) if self.log else ticks(*self.y):
            _, y = self.place(self.x[0], value)
            parts.append(path([(self.left, y), (self.width - self.right, y)], "grid"))
            parts.append(text(self.left - 6, y + 3.5, format(value, form), "tick", "end"))
        for value, name in marks or [(value, f"{value:g}") for value in ticks(*self.x, 5 if self.width > 500 else 3)]:
            x, _ = self.place(value, self.y[0])
            parts.append(text(x, self.height - self.bottom + 15, name, "tick", "middle"))
        parts.append(text(self.width - self.right, self.height - 4, x_label, "label", "end"))
        parts.append(text(0, 10, y_label, "label"))
        return parts

    def _log_marks(self, factors: Sequence[float]) -> list[float]:
        decades = range(int(np.floor(np.log10(self.y[0]))), int(np.ceil(np.log10(self.y[1]))) + 1)
        marks = [factor * 10.0**decade for decade in decades for factor in factors]
        return [mark for mark in marks if self.y[0] * 0.999 <= mark <= self.y[1] * 1.001]
