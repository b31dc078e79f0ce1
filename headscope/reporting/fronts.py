"""Figures of searches: loss against bytes for every method, the front, and how few trials suffice."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headscope.reporting.plots import INK, QUIET, styled

SEARCHED = "#1f7a8c"
# Methods from the quietest to the one that is looked for; controls dashed.
SHADES = {
    "streaming": ("#b9a27c", "-"),
    "linear": ("#8f9a6b", "-"),
    "pyramid": ("#a98aa8", "-"),
    "h2o": ("#bd5424", "-"),
    "ssd": ("#7b6fb0", "-"),
    "random_heads": ("#c9c5bb", "--"),
    "swapped": ("#c9c5bb", ":"),
    "optuna": ("#7fb8c4", "--"),
    "solver": ("#4f9aa9", "-."),
    "searched": (SEARCHED, "-"),
}


def front_figure(points: pd.DataFrame, chosen: pd.DataFrame, plain: float) -> str:
    """SVG: every measured policy by share of the plain cache and loss, the front as a line, the chosen ones named."""
    with styled():
        figure = Figure(figsize=(6.2, 3.6))
        axes = figure.subplots()
        share = 100 * points["cache_bytes"] / plain
        axes.scatter(share, points["kl"], s=9, color=QUIET, alpha=0.5, linewidths=0, label="measured")
        front = points[points["on_front"]].sort_values("cache_bytes")
        axes.plot(100 * front["cache_bytes"] / plain, front["kl"], color=SEARCHED, drawstyle="steps-post", label="front")
        for row in chosen.itertuples(index=False):
            axes.annotate(
                str(row.keep), (100 * row.kept_ratio, row.kl), textcoords="offset points", xytext=(4, 5), fontsize=8, color=INK
            )
        axes.set(xlabel="kept, % of the plain cache", ylabel="KL, nats a token", yscale="log")
        axes.legend()
        return _svg(figure)


def budgets_figure(table: pd.DataFrame) -> Figure:
    """Loss on unseen prompts by budget, a line a method; where there are several seeds, their mean and range.

    Args:
        table: budget (share), method, seed, replay_kl.
    """
    with styled():
        figure = Figure(figsize=(6.6, 4.2))
        axes = figure.subplots()
        ends: list[tuple[float, str, str]] = []
        for method, (colour, dashes) in SHADES.items():
            mine = table[table["method"] == method].groupby("budget")["replay_kl"].agg(["mean", "min", "max"]).sort_index()
            if mine.empty:
                continue
            x = 100 * mine.index.to_numpy(dtype=float)
            wide = 2.2 if method == "searched" else 1.2
            axes.plot(x, mine["mean"], dashes, color=colour, linewidth=wide, marker="o", markersize=3, label=method)
            if (mine["max"] > mine["min"]).any():
                axes.fill_between(x, mine["min"], mine["max"], color=colour, alpha=0.18, linewidth=0)
            ends.append((float(mine["mean"].iloc[-1]), method, colour if dashes == "-" else QUIET))
        ticks = sorted({100 * float(budget) for budget in table.loc[table["method"] != "full", "budget"]})
        axes.set(xscale="log", yscale="log", xlabel="kept, % of the plain cache", ylabel="KL on unseen prompts, nats a token")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(min(ticks) * 0.93, max(ticks) * 1.45)
        _name_ends(axes, max(ticks), ends)
        return figure


def meaning_figure(table: pd.DataFrame) -> Figure:
    """Share of pictures that show their prompt by budget, a line a method; bands: 95 % of the searched and of the full cache.

    Args:
        table: method, budget (share), category, score, low, high; those of category overall are drawn.
    """
    overall = table[table["category"] == "overall"]
    full, parts = overall[overall["method"] == "full"], overall[overall["method"] != "full"]
    ticks = sorted({round(100 * float(budget), 6) for budget in parts["budget"]}, reverse=True)
    with styled():
        figure = Figure(figsize=(6.6, 4.2))
        axes = figure.subplots()
        if not full.empty:
            axes.axhspan(full["low"].iloc[0], full["high"].iloc[0], color=QUIET, alpha=0.14, linewidth=0)
            axes.axhline(full["score"].iloc[0], color=QUIET, linewidth=1)
        ends: list[tuple[float, str, str]] = []
        for method, (colour, dashes) in SHADES.items():
            mine = parts[parts["method"] == method].sort_values("budget", ascending=False)
            if mine.empty:
                continue
            x = [ticks.index(round(100 * float(budget), 6)) for budget in mine["budget"]]
            wide = 2.2 if method == "searched" else 1.2
            axes.plot(x, mine["score"], dashes, color=colour, linewidth=wide, marker="o", markersize=3)
            if method == "searched":
                axes.fill_between(x, mine["low"], mine["high"], color=colour, alpha=0.18, linewidth=0)
            ends.append((float(mine["score"].iloc[-1]), method, colour if dashes == "-" else QUIET))
        axes.set(xlabel="kept, % of the plain cache", ylabel="pictures that show their prompt (grey: full cache)")
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set_xlim(-0.2, len(ticks) - 0.2)
        axes.set_ylim(bottom=0)
        _name_ends(axes, len(ticks) - 1, ends)
        return figure


def _name_ends(axes: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines (height, name, colour), pushed apart where they would lie on each other."""
    apart, above = 10.0, -np.inf  # points
    scale = 72 / axes.figure.dpi
    for y, name, colour in sorted(ends):
        place = axes.transData.transform((x, y))[1] * scale
        text = max(place, above + apart)
        above = text
        label = name.replace("_", " ")
        offset = (6, text - place - 3)
        axes.annotate(label, (x, y), textcoords="offset points", xytext=offset, fontsize=8, color=colour)


def trials_figure(table: pd.DataFrame) -> Figure:
    """Least loss so far by trial, a line a sampler: the mean over seeds and their range; a panel a start.

    Args:
        table: method, sampler, seed, trial, best_kl.
    """
    shades = ["#1f7a8c", "#bd5424", "#7b6fb0", "#8f9a6b", "#68655e"]
    said = {"searched": "from the solver's answer", "optuna": "from presets, without a table"}
    methods = list(dict.fromkeys(table["method"]))
    with styled():
        figure = Figure(figsize=(1.4 + 4.4 * len(methods), 3.6))
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


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
