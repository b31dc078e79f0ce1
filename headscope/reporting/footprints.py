"""Footprints: where a head looks from one token, in words and drawn.

A footprint is float32 [rows, 2 row_length - 1]: attention by rows up and columns across, the query in row 0, in the middle.
That of a text has one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from headscope.reporting.style import COLOURS, GROUND, INK, blank, hover, name_of, styled
from headscope.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = 24  # opacities: cells of one are one path, so that a 24 x 47 footprint takes 20 KB in a page instead of 120


def described(mass: torch.Tensor, most: int = 2) -> str:
    """A footprint in words: the places that hold a tenth or more, or over how many places it is spread.

    Args:
        mass: a footprint, float32 [rows, 2 row_length - 1]; the query itself is in the middle of the first row.
        most: places that are named.
    """
    values, middle = mass.numpy(), mass.shape[1] // 2
    shares = values.reshape(-1).astype(float) / (float(values.sum()) or 1.0)
    order = np.argsort(-shares, kind="stable")
    places = []
    for flat in order[:most]:
        up, column = divmod(int(flat), values.shape[1])
        if shares[flat] >= 0.1:
            where = _back(middle - column) if len(values) == 1 else _where(up, column - middle)
            places.append(f"{percent(shares[flat])} on {where}")
    if not places:
        return f"{percent(0.9)} of it spread over {int(np.searchsorted(shares[order].cumsum(), 0.9)) + 1} places"
    return "; ".join(places)


def _back(tokens: int) -> str:
    """In a text, which is one row."""
    return "itself" if tokens == 0 else "the token before" if tokens == 1 else f"the token {tokens} back"


def _where(up: int, across: int) -> str:
    if (up, across) == (0, 0):
        return "itself"
    rows = "its own row" if up == 0 else "the row above" if up == 1 else f"{up} rows above"
    return rows + ("" if across == 0 else f", {abs(across)} to the {'left' if across < 0 else 'right'}")


def _reach(values: np.ndarray, middle: int, share: float = 0.9) -> tuple[int, int]:
    """Rows and columns around the query that hold `share` of the mass; at least 3 and 5, so that footprints compare."""
    total = values.sum() or 1.0
    rows, columns = min(3, values.shape[0] - 1), min(5, middle)
    while rows < values.shape[0] - 1 or columns < middle:
        inside = values[: rows + 1, max(middle - columns, 0) : middle + columns + 1].sum()
        if inside >= share * total:
            break
        rows, columns = min(rows + 1, values.shape[0] - 1), min(columns + 1, middle)
    return rows, columns


@styled()
def footprint(mass: torch.Tensor, kind: str, label: str) -> Figure:
    """One head's, small and without axes, cropped to where the attention is; the query is outlined.

    Args:
        mass: a footprint.
        kind: class of the head, for the colour.
        label: what the head is called.
    """
    values, wide, tall = mass.numpy(), 2.0, 1.1
    up, across = _reach(values, values.shape[1] // 2)
    cell = wide / (2 * across + 1)
    tall = max(tall, (up + 1) * cell)  # one height for most, so that they line up
    figure = blank(wide, tall, f"Footprint of {label}: {described(mass)}")
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
    hover(axes.axvspan(-across - 0.5, across + 0.5, color=GROUND, linewidth=0), described(mass))
    _cells(axes, values, COLOURS[kind])
    axes.set(xlim=(-across - 0.5, across + 0.5), ylim=(-0.5, tall / cell - 0.5))
    return figure


@styled()
def footprints(masses: torch.Tensor, heads: Sequence[tuple[int, int]], kinds: Sequence[str], labels: Sequence[str]) -> Figure:
    """Where chosen heads look, whole and with axes, as in figure 3 of SSD's paper (2510.18716).

    Args:
        masses: footprints, float32 [layers, KV heads, rows, 2 row_length - 1].
        heads: (layer, KV head) of each.
        kinds: class of each.
        labels: words beside the name of each.
    """
    columns = min(len(heads), 4)
    lines = -(-len(heads) // columns)
    tall, wide = masses.shape[2:]
    height = 1.5 if tall == 1 else 2.9 * tall / wide
    figure = blank(2.9 * columns + 0.4, (height + 0.62) * lines)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(heads) :]:
        axes.set_axis_off()
    for axes, (layer, head), kind, label in zip(grid, heads, kinds, labels, strict=False):
        draw_footprint(axes, masses[layer, head], kind, f"{name_of(layer, head)}  {label}")
    return figure


def draw_footprint(axes: Axes, mass: torch.Tensor, kind: str, title: str) -> None:
    """One footprint with its axes; that of a text is a curve over the tokens back.

    Args:
        axes: to draw on.
        mass: a footprint.
        kind: class of the head, for the colour.
        title: above it.
    """
    if mass.shape[0] == 1:
        back = mass[0, : mass.shape[1] // 2 + 1].flip(0).clamp(min=1e-5)
        axes.fill_between(range(len(back)), 1e-5, back, color=COLOURS[kind], linewidth=0)
        axes.set(title=title, xlabel="tokens back", ylabel="share of attention", yscale="log")
        axes.set(ylim=(1e-5, 1), xlim=(0, len(back)))
        return
    half = mass.shape[1] // 2
    axes.set_facecolor(GROUND)
    _cells(axes, mass.nan_to_num(0.0).clamp(min=0).numpy(), COLOURS[kind])
    axes.set(title=title, xlabel="columns across", ylabel="rows up", aspect="equal")
    axes.set(xlim=(-half - 0.5, half + 0.5), ylim=(-0.5, mass.shape[0] - 0.5))


def _cells(axes: Axes, values: np.ndarray, colour: str) -> None:
    """A cell a place, whose opacity is the square root of its share of the largest, so that faint mass shows; nothing is drawn
    where there is nothing. The query is outlined."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    middle, side = values.shape[1] // 2, 0.93
    level = np.ceil(_LEVELS * np.sqrt(values / (float(values.max()) or 1.0))).astype(int)
    level[values <= 0.001 * (float(values.max()) or 1.0)] = 0
    corners = np.array([(0, 0), (side, 0), (side, side), (0, side), (0, 0)])
    for one in np.unique(level[level > 0]):
        places = np.argwhere(level == one)[:, ::-1] - (middle + side / 2, side / 2)
        codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(places))
        path = Path((places[:, None] + corners).reshape(-1, 2), codes)
        axes.add_patch(PathPatch(path, facecolor=colour, alpha=one / _LEVELS, linewidth=0))
    axes.add_patch(Rectangle((-side / 2, -side / 2), side, side, fill=False, edgecolor=INK, linewidth=1))
