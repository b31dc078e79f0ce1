"""Figures of heads for papers and notebooks, by seaborn: each is a function of a table or of curves and returns a figure.

The report draws its own small figures as SVG (figures.py, head_figures.py); these are for looking at any statistic closely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headscope.errors import DataError
from headscope.heads import FEATURES, SEMANTIC, SPATIAL
from headscope.storage import write_whole

CLASSES = (SPATIAL, SEMANTIC)
COLOURS = {SPATIAL: "#1f7a8c", SEMANTIC: "#bd5424"}
INK, QUIET = "#1d1c1a", "#68655e"
FORMATS = ("png", "svg", "pdf")
_STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "headscope",
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.color": QUIET,
    "ytick.labelsize": 8,
}
_ALIKE = 0.98  # correlation from which on a second feature shows nothing new
_MOST_LABELS = 64  # heads whose names stand beside a dendrogram


@contextmanager
def styled() -> Iterator[None]:
    """The look of all figures."""
    with mpl.rc_context(_STYLE):
        yield


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure whole or not at all, in the format of its suffix, the same bytes for the same data.

    Raises:
        DataError: the suffix is no format of a figure.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise DataError(f"{path}: figures are written as {', '.join(FORMATS)}; name a file that ends so.")
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context(_STYLE):
        return write_whole(path, lambda target: figure.savefig(target, format=kind, dpi=160, metadata=stamp, facecolor="white"))


def name_of(layer: int, head: int) -> str:
    """`L7H9`."""
    return f"L{layer}H{head}"


def statistic_map(table: pd.DataFrame, statistic: str, unit: str = "", head: str = "kv_head") -> Figure:
    """A head map: layers downward, heads across, coloured by one statistic.

    Args:
        table: a row a head: layer, `head`, and the statistic; rows of a head (pictures, streams) are averaged.
    Raises:
        DataError: the table has no such column.
    """
    if statistic not in table.columns:
        near = ", ".join(name for name in table.columns if name not in ("layer", head))
        raise DataError(f"statistic {statistic}: not in the trace, which has {near}.")
    wide = table.pivot_table(index="layer", columns=head, values=statistic, aggfunc="mean")
    layers, heads = wide.shape
    cell = 0.42 if heads <= 16 else 0.26
    with styled():
        figure = Figure(figsize=(1.9 + cell * heads, 1.1 + cell * layers))
        axes = figure.subplots()
        written = wide.map(_figure).to_numpy() if heads <= 12 and layers <= 16 else False
        sns.heatmap(
            wide,
            ax=axes,
            cmap="mako_r",
            square=True,
            linewidths=0.6,
            annot=written,
            fmt="",
            annot_kws={"fontsize": 7},
            cbar_kws={"label": unit, "shrink": 0.7, "aspect": 18},
        )
        axes.set(title=statistic, xlabel="head", ylabel="layer")
        axes.tick_params(left=False, bottom=False)
        axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    return figure


def _figure(value: float) -> str:
    """Two figures in a small cell; what is far below the others is 0."""
    return "0" if abs(value) < 5e-4 else f"{value:.2g}" if abs(value) >= 0.01 else f"{value:.3f}"


def telling(table: pd.DataFrame, count: int = 5) -> list[str]:
    """The features that differ most between the classes (distance of the means in standard deviations), no two alike."""
    features = [name for name in FEATURES if name in table.columns and table[name].std() > 1e-12]
    means = table.groupby("class")[features].mean()
    if len(means) < 2:
        return features[:count]
    apart = ((means.loc[SEMANTIC] - means.loc[SPATIAL]) / table[features].std()).abs()
    alike = table[features].corr().abs()
    chosen: list[str] = []
    for name in apart.sort_values(ascending=False, kind="stable").index:
        if all(alike.loc[name, other] < _ALIKE for other in chosen):
            chosen.append(str(name))
    return chosen[:count]


def pair_plot(table: pd.DataFrame, names: Sequence[str] | None = None) -> Figure:
    """Every feature against every other, a dot a head, coloured by class.

    Args:
        table: of `Heads`. names: which (default: the five that differ most between the classes).
    """
    chosen = list(names or telling(table))
    with styled(), mpl.rc_context({"figure.constrained_layout.use": False}):
        grid = sns.pairplot(
            table[[*chosen, "class"]],
            hue="class",
            hue_order=_present(table),
            palette=COLOURS,
            corner=True,
            height=1.75,
            plot_kws={"s": 22, "alpha": 0.8, "linewidth": 0.3},
            diag_kws={"common_norm": False, "linewidth": 1.2, "cut": 0},
        )
        sns.move_legend(grid, "upper right", bbox_to_anchor=(0.86, 0.92), title=f"{len(table)} heads")
    return _taken(grid.figure)


def decay_curves(lag_mass: torch.Tensor, table: pd.DataFrame, row_length: int) -> Figure:
    """Attention by distance in tokens: the median of each class, and the middle four fifths of its heads as a band.

    Args:
        lag_mass: float32 [layers, KV heads, lags]. table: of `Heads`.
    """
    last = min(lag_mass.shape[-1], 4 * row_length + 2)
    rows = [
        pd.DataFrame({"lag": np.arange(last), "share": np.maximum(lag_mass[r.layer, r.kv_head, :last].numpy(), 1e-5)}).assign(
            kind=kind
        )
        for kind in _present(table)
        for r in table[table["class"] == kind].itertuples()
    ]
    counts = table["class"].value_counts()
    with styled():
        figure = Figure(figsize=(7.2, 3.3))
        axes = figure.subplots()
        sns.lineplot(
            pd.concat(rows, ignore_index=True),
            x="lag",
            y="share",
            hue="kind",
            palette=COLOURS,
            estimator="median",
            errorbar=("pi", 80),
            ax=axes,
        )
        for above in range(1, (last - 1) // row_length + 1):
            axes.axvline(above * row_length, color=QUIET, linewidth=0.7, linestyle=(0, (1, 3)), zorder=0)
        if last > row_length:
            axes.text(row_length, 1.0, " row above", color=QUIET, fontsize=8, va="top", transform=axes.get_xaxis_transform())
        axes.set(yscale="log", xlabel="tokens back", ylabel="share of attention", xlim=(0, last - 1), ylim=(1e-5, 1))
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, [f"{name}, {counts[name]} heads" for name in labels], loc="upper right")
    return figure


def footprints(footprint: torch.Tensor, heads: Sequence[tuple[int, int]], labels: Sequence[str] = ()) -> Figure:
    """Where chosen heads look, by rows up and columns across, the query at the bottom: the picture in figure 3 of SSD's paper.

    Args:
        footprint: float32 [layers, KV heads, rows, 2 row_length - 1]. heads: (layer, KV head). labels: a line under each name.
    """
    columns = min(len(heads), 4)
    lines = -(-len(heads) // columns)
    tall, wide = footprint.shape[2:]
    with styled():
        height = 1.5 if tall == 1 else 2.9 * tall / wide
        figure = Figure(figsize=(2.9 * columns + 0.4, (height + 0.62) * lines))
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for place, axes in enumerate(grid):
            if place >= len(heads):
                axes.set_axis_off()
                continue
            layer, head = heads[place]
            under = f"  {labels[place]}" if place < len(labels) else ""
            draw_footprint(axes, footprint[layer, head], f"{name_of(layer, head)}{under}")
    return figure


def draw_footprint(axes: Axes, mass: torch.Tensor, title: str) -> None:
    """One footprint [rows, 2 row_length - 1]; darkness is the square root of the share, so that faint mass shows. That of a
    text, one row, is a curve over the tokens back."""
    if mass.shape[0] == 1:
        back = mass[0, : mass.shape[1] // 2 + 1].flip(0).clamp(min=1e-5)
        axes.fill_between(range(len(back)), 1e-5, back, color=COLOURS[SPATIAL], linewidth=0)
        axes.set(
            title=title, xlabel="tokens back", ylabel="share of attention", yscale="log", ylim=(1e-5, 1), xlim=(0, len(back))
        )
        return
    values = mass.nan_to_num(0.0).clamp(min=0).sqrt().numpy()[::-1]
    half = mass.shape[1] // 2
    side = (-half - 0.5, half + 0.5, -0.5, mass.shape[0] - 0.5)
    axes.imshow(values, cmap="mako_r", extent=side, origin="upper", aspect="equal", interpolation="nearest", vmin=0)
    axes.add_patch(mpl.patches.Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor=COLOURS[SEMANTIC], linewidth=1.4))
    axes.set(title=title, xlabel="columns across", ylabel="rows up")


def dendrogram(table: pd.DataFrame) -> Figure:
    """Heads joined by likeness (Ward's method on the standardised features), the class beside each.

    Args:
        table: of `Heads`.
    Raises:
        DataError: fewer than three heads.
    """
    names = [name for name in FEATURES if name in table.columns and table[name].std() > 1e-12]
    if len(table) < 3 or not names:
        raise DataError(f"Found {len(table)} heads with {len(names)} features; a dendrogram needs at least three heads.")
    index = pd.Index([name_of(row.layer, row.kv_head) for row in table.itertuples()])
    standard = ((table[names] - table[names].mean()) / table[names].std()).set_axis(index, axis=0)
    labelled = len(table) <= _MOST_LABELS
    with styled(), mpl.rc_context({"figure.constrained_layout.use": False}):
        grid = sns.clustermap(
            standard.T,
            method="ward",
            row_cluster=False,
            cmap="vlag",
            center=0,
            vmin=-3,
            vmax=3,
            col_colors=pd.Series([COLOURS[kind] for kind in table["class"]], index=index, name="class"),
            xticklabels=labelled,
            figsize=(max(7.0, 0.155 * len(table) + 3) if labelled else 10, 4.6),
            dendrogram_ratio=(0.02, 0.34),
            colors_ratio=(0.01, 0.04),
            cbar_pos=(0.885, 0.8, 0.09, 0.03),
            cbar_kws={"label": "standard deviations", "orientation": "horizontal"},
        )
        grid.ax_heatmap.tick_params(length=0)
        grid.ax_heatmap.set_xticklabels(grid.ax_heatmap.get_xticklabels(), fontsize=6.5, rotation=90)
        handles = [mpl.patches.Patch(color=COLOURS[kind], label=kind) for kind in _present(table)]
        grid.ax_col_dendrogram.legend(handles=handles, loc="upper right", ncols=2)
    return _taken(grid.figure)


def class_by_layer(table: pd.DataFrame) -> Figure:
    """The semantic score of every head, layer by layer, coloured by class, and each layer's mean as a line."""
    means = table.groupby("layer")["semantic_score"].mean()
    with styled():
        figure = Figure(figsize=(max(4.6, 1.6 + 0.36 * len(means)), 3.1))
        axes = figure.subplots()
        most = max(int(table["kv_head"].max()), 1)
        sns.scatterplot(
            table.assign(place=table["layer"] + 0.5 * (table["kv_head"] / most - 0.5)),  # in the order of the heads
            x="place",
            y="semantic_score",
            hue="class",
            hue_order=_present(table),
            palette=COLOURS,
            s=26,
            alpha=0.85,
            linewidth=0.3,
            ax=axes,
        )
        axes.plot(means.index, means, color=INK, linewidth=1.3, label="mean of the layer", zorder=3)
        axes.axhline(0.5, color=QUIET, linewidth=0.7, linestyle=(0, (1, 3)), zorder=0)
        axes.set(xlabel="layer", ylabel="semantic score", ylim=(-0.03, 1.03))
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def agreement(table: pd.DataFrame) -> Figure:
    """How far two disjoint sets of prompts agree, by their number: classes (adjusted Rand index) and graded score (rank
    correlation), the mean and 10 to 90 % of the draws.

    Args:
        table: of `headscope.heads.stability.stability`.
    """
    prompts = table[table["what"] == "prompts"].assign(count=lambda t: t["value"].astype(int))
    kinds = {"rand": ("classes, adjusted Rand index", COLOURS[SEMANTIC]), "rank": ("score, rank correlation", COLOURS[SPATIAL])}
    with styled():
        figure = Figure(figsize=(5.6, 3.1))
        axes = figure.subplots()
        for name, (label, colour) in kinds.items():
            axes.fill_between(prompts["count"], prompts[f"{name}_low"], prompts[f"{name}_high"], color=colour, alpha=0.18, lw=0)
            axes.plot(prompts["count"], prompts[name], marker="o", markersize=4, color=colour, label=label)
        axes.set(
            xscale="log", xlabel="prompts in each set", ylabel="agreement", ylim=(min(0.0, prompts["rand_low"].min()), 1.02)
        )
        axes.set_xticks(prompts["count"], [str(count) for count in prompts["count"]])
        axes.minorticks_off()
        axes.legend(loc="lower right")
    return figure


def _taken(figure: Figure) -> Figure:
    """A figure of seaborn's own grids, out of pyplot's list: there it would be kept for ever, and shown a second time."""
    plt.close(figure)
    return figure


def _present(table: pd.DataFrame) -> list[str]:
    found = set(table["class"])
    return [kind for kind in CLASSES if kind in found]
