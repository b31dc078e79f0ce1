"""Charts of the heads' features: which tell the classes apart, who is like whom, and where in the model the classes live.

Each is a function of the table of `Heads` and returns a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from headscope.errors import DataError
from headscope.heads import FEATURES, SEMANTIC, SPATIAL
from headscope.reporting.style import CLASSES, COLOURS, INK, OTHER, blank, name_of, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALIKE = 0.98  # correlation from which on a second feature shows nothing new
_MOST_LABELS = 64  # heads whose names stand beside a dendrogram


def telling(table: pd.DataFrame, count: int = 5) -> list[str]:
    """The features that differ most between the classes (distance of the means in standard deviations), no two alike."""
    features = _varying(table)
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


def _varying(table: pd.DataFrame) -> list[str]:
    return [name for name in FEATURES if name in table.columns and table[name].std() > 1e-12]


def _present(table: pd.DataFrame) -> list[str]:
    found = set(table["class"])
    return [kind for kind in CLASSES if kind in found]


@styled()
def pair_plot(table: pd.DataFrame, names: Sequence[str] | None = None) -> Figure:
    """Every feature against every other, a dot a head, and how each is distributed, by class.

    Args:
        table: of `Heads`.
        names: which (default: the five that differ most between the classes).
    """
    import seaborn as sns  # its own pairplot keeps the figure in pyplot's list

    chosen = list(names or telling(table))
    count, kinds = len(chosen), _present(table)
    look = {"hue": "class", "hue_order": kinds, "palette": COLOURS, "legend": False}
    figure = blank(1.75 * count + 0.4, 1.75 * count)
    panels = figure.subplots(count, count, squeeze=False, sharex="col")
    for (row, column), axes in {(r, c): panels[r, c] for r in range(count) for c in range(count)}.items():
        if column > row:
            axes.set_axis_off()
            continue
        if column == row:
            sns.kdeplot(
                table, x=chosen[row], fill=True, common_norm=False, linewidth=1.2, cut=0, warn_singular=False, ax=axes, **look
            )
        else:
            sns.scatterplot(table, x=chosen[column], y=chosen[row], s=22, alpha=0.8, linewidth=0.3, ax=axes, **look)
        axes.set(xlabel=chosen[column] if row == count - 1 else "", ylabel=chosen[row] if column == 0 and row else "")
        if column == row or column:
            axes.tick_params(labelleft=False, left=column != row)
    dots = [panels[0, 0].plot([], [], "o", color=COLOURS[kind], label=kind)[0] for kind in kinds]
    figure.legend(handles=dots, loc="upper right", title=f"{len(table)} heads")
    return figure


@styled()
def dendrogram(table: pd.DataFrame) -> Figure:
    """Heads joined by likeness (Ward's method on the standardised features), the class beside each.

    Args:
        table: of `Heads`.

    Raises:
        DataError: fewer than three heads.
    """
    names = _varying(table)
    if len(table) < 3 or not names:
        raise DataError(f"Found {len(table)} heads with {len(names)} features; a dendrogram needs at least three heads.")
    import seaborn as sns
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from scipy.cluster.hierarchy import dendrogram as tree, linkage

    standard = (table[names] - table[names].mean()) / table[names].std()
    found = tree(linkage(standard, "ward"), no_plot=True)
    ordered = table.iloc[found["leaves"]]
    labelled = len(table) <= _MOST_LABELS
    figure = blank(max(7.0, 0.155 * len(table) + 3) if labelled else 10, 4.8)
    above, classes, below = figure.subplots(3, 1, height_ratios=(0.34, 0.03, 0.63))
    joins = [[(x / 10, y) for x, y in zip(*pair, strict=True)] for pair in zip(found["icoord"], found["dcoord"], strict=True)]
    above.add_collection(LineCollection(joins, colors=INK, linewidths=0.7))
    above.set(xlim=(0, len(table)), ylim=(0, max(max(join) for join in found["dcoord"]) * 1.02))
    above.set_axis_off()
    above.legend(handles=[Patch(color=COLOURS[kind], label=kind) for kind in _present(table)], loc="upper right", ncols=2)
    numbers = ordered["class"].map({kind: number for number, kind in enumerate(CLASSES)}).to_numpy()[None]
    plain = {"cbar": False, "xticklabels": False, "yticklabels": False}
    sns.heatmap(numbers, ax=classes, cmap=ListedColormap([COLOURS[kind] for kind in CLASSES]), vmin=0, vmax=1, **plain)
    heads = [name_of(row.layer, row.kv_head) for row in ordered.itertuples()]
    bar = {"label": "standard deviations", "orientation": "horizontal", "shrink": 0.3, "aspect": 30, "pad": 0.02}
    shown = standard.iloc[found["leaves"]].T
    sns.heatmap(shown, ax=below, cmap="vlag", center=0, vmin=-3, vmax=3, xticklabels=heads if labelled else False, cbar_kws=bar)
    below.tick_params(length=0)
    below.tick_params(axis="x", labelsize=6.5, rotation=90)
    below.set(xlabel="", ylabel="")
    return figure


@styled()
def class_by_layer(table: pd.DataFrame) -> Figure:
    """The semantic score of every head, layer by layer, coloured by class, and each layer's mean as a line."""
    from matplotlib.ticker import MaxNLocator

    means = table.groupby("layer")["semantic_score"].mean()
    figure = blank(max(4.6, 1.6 + 0.36 * len(means)), 3.1)
    axes = figure.subplots()
    most = max(int(table["kv_head"].max()), 1)
    for kind in _present(table):
        mine = table[table["class"] == kind]
        place = mine["layer"] + 0.5 * (mine["kv_head"] / most - 0.5)  # in the order of the heads
        axes.scatter(place, mine["semantic_score"], s=22, alpha=0.85, linewidths=0, color=COLOURS[kind], label=kind)
    axes.plot(means.index, means, color=INK, linewidth=1.3, label="mean of the layer", zorder=3)
    axes.axhline(0.5, color=OTHER, linewidth=0.7, linestyle=(0, (1, 3)), zorder=0)
    axes.set(xlabel="layer", ylabel="semantic score", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
