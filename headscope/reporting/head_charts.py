"""Charts of heads: the map of classes, maps of statistics, attention by distance, scores, and what each head keeps.

Each is a function of a table or of curves and returns a figure; `table` is that of `Heads`, a row a KV head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.heads import SEMANTIC, SPATIAL
from headscope.policy import CacheSpec, Policy, image_slots
from headscope.reporting.style import (
    ANCHOR,
    BUFFER,
    CLASSES,
    COLOURS,
    GROUND,
    INK,
    LINE,
    NARROW,
    ON_MIDDLE,
    ON_PALE,
    ON_STRONG,
    PAPER,
    QUIET,
    WIDE,
    blank,
    distance_axis,
    framed,
    hover,
    styled,
)
from headscope.words import percent, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOUBT = 0.9  # confidence below which a head is marked
_SPACIOUS = 0.24  # inches of a cell's side from which on it holds its score
_BESIDE = 4.0  # inches: width of the map, which stands beside the scores


def side_of(heads: int) -> float:
    """Inches of a cell's side in the map of classes of so many heads a layer."""
    return min(0.46, (_BESIDE - 0.26) / heads)


def shows_scores(heads: int) -> bool:
    """Whether the cells of the map of classes have room for the scores."""
    return side_of(heads) >= _SPACIOUS


@styled()
def class_map(table: pd.DataFrame) -> Figure:
    """Layers downward, heads across. Hue: class; strength: how far the semantic score lies from the middle; the score's
    digits where they fit; a dot where the class is uncertain."""
    layers, heads = int(table["layer"].max()) + 1, int(table["kv_head"].max()) + 1
    side, gap = side_of(heads), 0.94
    figure = blank(0.26 + heads * side, 0.2 + layers * side, f"Head map: {layers} layers by {heads} heads")
    across, down = heads * side / figure.get_figwidth(), layers * side / figure.get_figheight()
    figure.set_layout_engine("none")
    axes = figure.add_axes((1 - across, 0, across, down))
    x, y = table["kv_head"].to_numpy(), table["layer"].to_numpy()
    score = table["semantic_score"].to_numpy()
    strength = np.minimum(0.16 + 1.68 * np.abs(score - 0.5), 1.0)
    boxes = [(a - gap / 2, b - gap / 2, gap, gap) for a, b in zip(x, y, strict=True)]
    _boxes(axes, boxes, GROUND)
    hues = [COLOURS[kind] for kind in table["class"]]
    titles = [
        f"layer {row['layer']} head {row['kv_head']}: {row['class']}, semantic score {row['semantic_score']:.2f}, "
        f"confidence {row['confidence']:.2f}"
        for row in table.to_dict("records")
    ]
    _boxes(axes, boxes, hues, strength.tolist(), titles)
    if shows_scores(heads):
        for a, b, value, strong in zip(x, y, score, strength, strict=True):
            colour = ON_STRONG if strong > 0.9 else ON_MIDDLE if strong > 0.65 else ON_PALE
            told = f"{value:.2f}"[1:] if value < 0.995 else "1"
            axes.text(a, b, told, color=colour, fontsize=8, ha="center", va="center_baseline")
    doubtful = table["confidence"].to_numpy() < DOUBT
    inset = gap / 2 - min(0.09 / side, gap / 4)
    axes.scatter(
        x[doubtful] + inset, y[doubtful] - inset, s=(72 * min(0.06, side / 6)) ** 2, color=INK, edgecolors=PAPER, linewidths=0.7
    )
    every = 1 if side >= 0.15 else 4
    axes.set(xlim=(-0.5, heads - 0.5), ylim=(layers - 0.5, -0.5), xticks=range(0, heads, every), yticks=range(0, layers, every))
    axes.tick_params(length=0, pad=3, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    if side > 0.3:
        axes.text(-0.5 - 0.24 / side, -0.5 - 0.09 / side, "layer", color=QUIET, fontsize=8)
    return figure


def _boxes(
    axes: Axes,
    boxes: Sequence[tuple[float, float, float, float]],
    colours: str | Sequence[str],
    alpha: float | Sequence[float] = 1.0,
    titles: Sequence[str] = (),
) -> None:
    """Rectangles (left, bottom, width, height) of one collection."""
    if not boxes:
        return
    from matplotlib.collections import PolyCollection

    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    drawn = PolyCollection(corners, facecolors=colours, linewidths=0, alpha=alpha, clip_on=False)
    if titles:
        hover(drawn, titles)
    axes.add_collection(drawn, autolim=False)


@styled()
def statistic_map(table: pd.DataFrame, statistic: str, unit: str = "", head: str = "kv_head") -> Figure:
    """Layers downward, heads across, coloured by one statistic.

    Args:
        table: a row a head: layer, `head`, and the statistic; rows of a head (images, streams) are averaged.
        statistic: a column of it.
        unit: of the statistic.
        head: the column that numbers the heads of a layer.

    Raises:
        DataError: the table has no such column.
    """
    if statistic not in table.columns:
        near = ", ".join(name for name in table.columns if name not in ("layer", head))
        raise DataError(f"statistic {statistic}: not in the trace, which has {near}.")
    import seaborn as sns

    wide = table.pivot_table(index="layer", columns=head, values=statistic, aggfunc="mean")
    layers, heads = wide.shape
    cell = 0.42 if heads <= 16 else 0.26
    figure = blank(1.9 + cell * heads, 1.1 + cell * layers)
    axes = figure.subplots()
    written = wide.map(_short).to_numpy() if heads <= 12 and layers <= 16 else False
    bar = {"label": unit, "shrink": 0.7, "aspect": 18}
    look = {"cmap": "mako_r", "square": True, "linewidths": 0.6, "annot_kws": {"fontsize": 7}}
    sns.heatmap(wide, ax=axes, annot=written, fmt="", cbar_kws=bar, **look)
    axes.set(title=statistic, xlabel="head", ylabel="layer")
    axes.tick_params(left=False, bottom=False)
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return figure


def _short(value: float) -> str:
    """Two figures in a small cell; what is far below the others is 0."""
    return "0" if abs(value) < 5e-4 else f"{value:.2g}" if abs(value) >= 0.01 else f"{value:.3f}"


@styled()
def scores(table: pd.DataFrame, width: float = NARROW, bins: int = 20) -> Figure:
    """How many heads have which semantic score, the two classes on top of each other.

    Args:
        table: of `Heads`.
        width: in inches.
        bins: of the scores from 0 to 1.
    """
    figure = blank(width, 0.55 * width, "How the semantic scores of the heads are distributed")
    axes = figure.subplots()
    edges = np.linspace(0, 1, bins + 1)
    below = np.zeros(bins)
    for kind in CLASSES:
        counts = np.histogram(table.loc[table["class"] == kind, "semantic_score"].clip(0, 1), edges)[0]
        some = np.flatnonzero(counts)
        drawn = axes.bar(edges[some], counts[some], 0.88 / bins, below[some], align="edge", color=COLOURS[kind])
        for bar, place in zip(drawn, some, strict=True):
            hover(bar, f"{counts[place]} {kind}, score {edges[place]:.2f} to {edges[place + 1]:.2f}")
        below += counts
    top = max(int(below.max()), 1)
    axes.set(xlim=(0, 1))
    framed(axes, "semantic score", "heads")
    axes.set(xticks=(0, 0.5, 1), yticks=sorted({0, -(-top // 2), top}))
    return figure


@styled()
def decay(
    lag_mass: torch.Tensor,
    table: pd.DataFrame,
    row_length: int,
    heads: Sequence[tuple[int, int, str]] = (),
    width: float = WIDE,
) -> Figure:
    """Attention by distance in tokens: the median of each class and the middle four fifths of its heads, or chosen heads.

    Args:
        lag_mass: float32 [layers, KV heads, lags].
        table: of `Heads`.
        row_length: tokens of a row.
        heads: (layer, KV head, class) of heads to draw instead of the classes; the second of a class is dashed.
        width: in inches.
    """
    low = 1e-4 if heads else 1e-5
    last = min(lag_mass.shape[-1], (3 if heads else 4) * row_length + 4)
    figure = blank(width, 2.5 if heads else 3.3, "Attention by distance in tokens")
    axes = figure.subplots()
    lags, seen, mass = np.arange(last), set[str](), lag_mass[..., :last].clamp(min=low).numpy()
    for layer, head, kind in heads:
        line = axes.plot(lags, mass[layer, head], "--" if kind in seen else "-", color=COLOURS[kind], linewidth=1.2)[0]
        hover(line, f"layer {layer} head {head}")
        seen.add(kind)
    for kind in [] if heads else CLASSES:
        part = table[table["class"] == kind]
        if part.empty:
            continue
        lowest, middle, highest = np.quantile(mass[part["layer"], part["kv_head"]], (0.1, 0.5, 0.9), axis=0)
        axes.fill_between(lags, lowest, highest, color=COLOURS[kind], alpha=0.2, linewidth=0)
        axes.plot(lags, middle, color=COLOURS[kind], label=f"{kind}, {len(part)} heads")
    distance_axis(axes, last, row_length, low)
    if not heads:
        axes.legend(loc="upper right")
    return figure


@styled()
def kept(policy: Policy, spec: CacheSpec, width: float = WIDE, margin: float = 0.0) -> Figure:
    """A bar a head, layer by layer: recent tokens, tokens kept by score, and what the stride's buffer takes.

    A bar is as wide as its bits, full for 16, so that its area is memory; first tokens always have 16.

    Args:
        policy: to draw.
        spec: what its bytes, at the right, are counted for.
        width: in inches.
        margin: inches below, which half of the last layer's number needs in a file; a page shows what lies outside a figure.
    """
    layers, heads = policy.window.shape
    count = {name: getattr(policy, name).numpy() for name in ("anchor", "window", "heavy")}
    written = (policy.stride, policy.bits.numpy(), policy.prompt.numpy(), policy.lead)
    nbytes = spec.rows * spec.head_bytes(count["window"], count["heavy"], count["anchor"], *written)
    slots = image_slots(count["window"], count["heavy"], policy.stride, policy.shape.geometry, policy.lead)
    count["buffer"] = slots - count["window"] - count["heavy"]
    top = float(sum(count.values()).max())
    pitch = 0.52 if layers <= 12 else 0.36  # inches a layer, of which 0.08 stay free
    tall = layers * pitch + 0.04
    figure = blank(width, tall + margin, "Tokens kept by every head, layer by layer")
    left, right = 0.26, 1.12 if width > 5 else 0.66
    figure.set_layout_engine("none")
    box = (left / width, (0.02 + margin) / (tall + margin), 1 - (left + right) / width, tall / (tall + margin))
    axes = figure.add_axes(box, frameon=False)
    thin, full = 1 - min(0.04 * heads / (width - left - right), 0.15), 1 - 0.08 / pitch
    share = policy.bits.numpy() / 16
    base = np.repeat(np.arange(layers - 1, -1, -1.0)[:, None], heads, 1)
    for name, colour in (("anchor", ANCHOR), ("window", COLOURS[SPATIAL]), ("heavy", COLOURS[SEMANTIC]), ("buffer", BUFFER)):
        height, wide = count[name] / top * full, thin * (np.ones_like(share) if name == "anchor" else share)
        places = [(n, h) for n in range(layers) for h in range(heads) if height[n, h]]
        _boxes(axes, [(h, base[n, h], wide[n, h], height[n, h]) for n, h in places], colour)
        base += height
    titles = [
        f"layer {n} head {h}: {count['window'][n, h]} recent, {count['heavy'][n, h]} by score"
        + (f", {count['anchor'][n, h]} first tokens" if count["anchor"][n, h] else "")
        + (f", in {policy.bits[n, h]} bits" if policy.quantized else "")
        + (", of the prompt its first and last token" if policy.drops_prompt[n, h] else "")
        + (f", chosen by {policy.score_of(n, h)}" if policy.score[n, h] and policy.heavy[n, h] else "")
        + f", {size(nbytes[n, h])}"
        for n in range(layers)
        for h in range(heads)
    ]
    _boxes(axes, [(h, layers - 1 - n, thin, full) for n in range(layers) for h in range(heads)], "none", titles=titles)
    axes.hlines(range(layers), 0, heads, color=LINE, linewidth=0.7, zorder=0)
    for n in range(layers):
        total = nbytes[n].sum()
        told = f"{percent(total / nbytes.sum())} · {size(total)}" if width > 5 else size(total)
        place = (1 + (right - 0.02) / (width - left - right), layers - 1 - n)
        axes.text(*place, told, fontsize=8, ha="right", transform=axes.get_yaxis_transform(), color=QUIET)
    axes.set(xlim=(0, heads), ylim=(0, layers), xticks=[])
    axes.set_yticks(range(layers), [str(layers - 1 - n) for n in range(layers)])
    axes.tick_params(length=0)
    return figure
