"""Charts of many runs together: loss and meaning against bytes for every method, and how few trials suffice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headscope.heads import SPATIAL
from headscope.reporting.style import COLOURS, QUIET, blank, name_ends, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Methods from the quietest to the one that is looked for; controls dashed.
SHADES = {
    "streaming": ("#b9a27c", "-"),
    "linear": ("#8f9a6b", "-"),  # as runs of before 0.2 call it
    "linear_ar": ("#8f9a6b", "-"),
    "pyramid": ("#a98aa8", "-"),
    "h2o": ("#bd5424", "-"),
    "ssd": ("#7b6fb0", "-"),
    "best preset": ("#bd5424", "-"),
    "best preset with bits": ("#bd5424", "--"),
    "kivi": ("#a98aa8", "-"),
    "random_heads": ("#c9c5bb", "--"),
    "swapped": ("#c9c5bb", ":"),
    "by depth": ("#c9c5bb", "-"),
    "by map": ("#7b6fb0", "-"),
    "by trace": ("#4f9aa9", "-"),
    "optuna": ("#7fb8c4", "--"),
    "solver": ("#4f9aa9", "-."),
    "searched16": (COLOURS[SPATIAL], "--"),
    "searched": (COLOURS[SPATIAL], "-"),
}


@styled()
def budgets_figure(table: pd.DataFrame) -> Figure:
    """Loss on unseen prompts by budget, a line a method; where there are several seeds, their mean and range.

    Args:
        table: budget (share), method, seed, replay_kl.
    """
    figure = blank(6.6, 4.2)
    axes = figure.subplots()
    ends: list[tuple[float, float, str, str]] = []
    for method, (colour, dashes) in SHADES.items():
        mine = table[table["method"] == method].groupby("budget")["replay_kl"].agg(["mean", "min", "max"]).sort_index()
        if mine.empty:
            continue
        x = 100 * mine.index.to_numpy(dtype=float)
        wide = 2.2 if method == "searched" else 1.2
        axes.plot(x, mine["mean"], dashes, color=colour, linewidth=wide, marker="o", markersize=3, label=method)
        if (mine["max"] > mine["min"]).any():
            axes.fill_between(x, mine["min"], mine["max"], color=colour, alpha=0.18, linewidth=0)
        ends.append((x[-1], float(mine["mean"].iloc[-1]), method.replace("_", " "), colour if dashes == "-" else QUIET))
    ticks = sorted({100 * float(budget) for budget in table.loc[table["method"] != "full", "budget"]})
    axes.set(xscale="log", yscale="log", xlabel="kept, % of the plain cache", ylabel="KL on unseen prompts, nats a token")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(ticks) * 0.93, max(ticks) * 1.05)
    name_ends(axes, ends)
    return figure


@styled()
def meaning_figure(table: pd.DataFrame) -> Figure:
    """Share of images that show their prompt by budget, a line a method; bands: 95 % of the searched and of the full cache.

    Args:
        table: method, budget (share), category, score, low, high; those of category overall are drawn.
    """
    overall = table[table["category"] == "overall"]
    full, parts = overall[overall["method"] == "full"], overall[overall["method"] != "full"]
    ticks = sorted({round(100 * float(budget), 6) for budget in parts["budget"]}, reverse=True)
    figure = blank(6.6, 4.2)
    axes = figure.subplots()
    if not full.empty:
        axes.axhspan(full["low"].iloc[0], full["high"].iloc[0], color=QUIET, alpha=0.14, linewidth=0)
        axes.axhline(full["score"].iloc[0], color=QUIET, linewidth=1)
    ends: list[tuple[float, float, str, str]] = []
    for method, (colour, dashes) in SHADES.items():
        mine = parts[parts["method"] == method].sort_values("budget", ascending=False)
        if mine.empty:
            continue
        x = [ticks.index(round(100 * float(budget), 6)) for budget in mine["budget"]]
        wide = 2.2 if method == "searched" else 1.2
        axes.plot(x, mine["score"], dashes, color=colour, linewidth=wide, marker="o", markersize=3)
        if method == "searched":
            axes.fill_between(x, mine["low"], mine["high"], color=colour, alpha=0.18, linewidth=0)
        ends.append((x[-1], float(mine["score"].iloc[-1]), method.replace("_", " "), colour if dashes == "-" else QUIET))
    axes.set(xlabel="kept, % of the plain cache", ylabel="images that show their prompt (grey: full cache)")
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    axes.set_xlim(-0.2, len(ticks) - 0.9)
    axes.set_ylim(bottom=0)
    name_ends(axes, ends)
    return figure


@styled()
def trials_figure(table: pd.DataFrame) -> Figure:
    """Least loss so far by trial, a line a sampler: the mean over seeds and their range; a panel a start.

    Args:
        table: method, sampler, seed, trial, best_kl.
    """
    shades = ["#1f7a8c", "#bd5424", "#7b6fb0", "#8f9a6b", "#68655e"]
    said = {"searched": "from the solver's answer", "optuna": "from presets, without a table"}
    methods = list(dict.fromkeys(table["method"]))
    figure = blank(1.4 + 4.4 * len(methods), 3.6)
    panels = figure.subplots(1, len(methods), squeeze=False)
    for axes, method in zip(panels[0], methods, strict=True):
        part = table[table["method"] == method]
        for (sampler, mine), colour in zip(part.groupby("sampler", sort=False), shades, strict=False):
            curves = mine.pivot(index="trial", columns="seed", values="best_kl").ffill()
            axes.plot(curves.index, curves.mean(axis=1), color=colour, drawstyle="steps-post", label=str(sampler))
            axes.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), step="post", color=colour, alpha=0.1)
        axes.set(xlabel="trials", xlim=(0, int(np.max(part["trial"]))), title=said.get(str(method), str(method)))
    panels[0][0].set_ylabel("least KL so far, nats a token")
    panels[0][0].legend()
    return figure
