"""Charts of methods and searches: losses, rows of the image, history, front, and how far to trust the classes.

Each is a function of its data and returns a figure; `width` is in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from headscope.heads import SEMANTIC, SPATIAL
from headscope.policy import CONTROLS
from headscope.reporting.style import (
    CLASSES,
    COLOURS,
    INK,
    LINE,
    NARROW,
    OTHER,
    QUIET,
    WIDE,
    blank,
    framed,
    hover,
    name_ends,
    styled,
)
from headscope.words import REFERENCES, nats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES: Any = ("-", "-", (0, (4, 2)), (0, (1, 2)))
# Colour and area in points².
_HISTORY = {"trial": (OTHER, 16), "preset": (COLOURS[SEMANTIC], 34), "solver": (COLOURS[SPATIAL], 34), "given up": (OTHER, 16)}


@styled()
def losses(methods: pd.DataFrame, width: float = WIDE) -> Figure:
    """Replay KL of each method with its interval, the best on top; controls lose so much that they stand in the table alone.

    Args:
        methods: method, replay_kl and, where they were measured, kl_low and kl_high (95 %), all in nats a token.
        width: of the figure.
    """
    table = methods[~methods["method"].isin([*REFERENCES, *CONTROLS])].sort_values("replay_kl", kind="stable")
    rows = table.to_dict("records")
    whiskers = "kl_high" in table and bool(table["kl_high"].notna().all())
    said = ", ".join(f"{row['method']} {nats(row['replay_kl'])}" for row in rows)
    figure = blank(width, 0.32 * max(len(rows), 1) + 0.04, f"Replay KL: {said}")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        value, best = max(float(row["replay_kl"]), 0.0), row["method"] == "searched"
        colour, title, end = INK if best else OTHER, f"{row['method']}: {nats(value)} nats a token", value
        if whiskers:
            low, end = (max(float(row[name]), 0.0) for name in ("kl_low", "kl_high"))
            title += f", between {nats(row['kl_low'])} and {nats(row['kl_high'])} (95 %)"
            hover(axes.plot([low, end], [place] * 2, color=colour, alpha=0.22, linewidth=5, solid_capstyle="butt")[0], title)
        axes.plot([0, value], [place] * 2, color=colour, linewidth=1.4)
        hover(axes.plot(value, place, "o", color=colour, markersize=8 if best else 6.6, markeredgewidth=0)[0], title)
        axes.annotate(
            nats(value),
            (max(end, value), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center_baseline",
            color=INK if best else QUIET,
            weight="bold" if best else "normal",
        )
    axes.set(ylim=(len(rows) - 0.5, -0.5), xticks=[], xlim=(0, None))
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=9)
    for label in axes.get_yticklabels():
        if label.get_text() == "searched":
            label.set(color=INK, weight="bold")
    axes.tick_params(length=0, pad=8)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(LINE)
    return figure


@styled()
def rows_of_image(by_row: pd.DataFrame, shown: Sequence[str], width: float = WIDE) -> Figure:
    """Loss by row of the image, a line a method.

    Args:
        by_row: method, row, kl (nats a token).
        shown: methods, in the order of the dashes.
        width: of the figure.
    """
    figure = blank(width, 2.5, f"Loss by row of the image for {', '.join(shown)}")
    axes = figure.subplots()
    ends = []
    for number, name in enumerate(shown):
        mine = by_row[by_row["method"] == name].sort_values("row")
        best = name == "searched"
        look = (
            {"color": INK, "linewidth": 1.6} if best else {"color": OTHER, "linewidth": 1.2, "linestyle": _DASHES[number % 4]}
        )
        hover(axes.plot(mine["row"], mine["kl"], **look)[0], name)
        ends.append((float(mine["row"].iloc[-1]), float(mine["kl"].iloc[-1]), name, INK if best else QUIET))
    top = float(by_row.loc[by_row["method"].isin(shown), "kl"].max())
    axes.set(xlim=(0, max(float(by_row["row"].max()), 1.0)), ylim=(0, top * 1.05 + 1e-9))
    framed(axes, "row of the image", "replay KL, nats a token")
    name_ends(axes, ends)
    return figure


@styled()
def history(trials: pd.DataFrame, width: float = WIDE) -> Figure:
    """Every measured policy in the order of measuring, and the best so far; presets and the solver's answers are larger.

    Args:
        trials: label, state and kl (nats a token, none where the trial failed) of each.
        width: of the figure.
    """
    done = trials[trials["kl"].notna()].reset_index(drop=True)
    labels = done["label"].astype(str)
    whole = done["kl"].where(done["state"] == "complete").astype(float)  # a given-up one was measured on some images only
    # The scale ends where the incumbents do, or the worst of the better nine tenths: a bad proposal says nothing more.
    first = labels.str.startswith(("preset", "solver"))
    low = max(float(whole.min()), 1e-9)
    high = max(float(whole.quantile(0.9)), float(done.loc[first, "kl"].max()) if first.any() else 0.0, low * 1.2) * 1.1
    figure = blank(width, 2.7, f"Search history: {len(done)} policies, the best loses {nats(low)} nats a token")
    axes = figure.subplots()
    axes.step(done.index, whole.cummin().ffill(), where="post", color=INK, linewidth=1.5)
    kinds = labels.str.split().str[0].where(first, "trial").where(done["state"] != "pruned", "given up")
    titles = labels + (done["state"] == "pruned").map({True: ", given up", False: ""}) + ": " + done["kl"].map(nats)
    outside = done["kl"] > high
    for kind, (colour, area) in _HISTORY.items():
        mine = done[(kinds == kind) & ~outside]
        if len(mine):
            place = mine["kl"].clip(lower=low * 0.9)
            dots = axes.scatter(
                mine.index, place, s=area, color=colour, linewidths=0, alpha=0.35 if kind == "given up" else 1, clip_on=False
            )
            hover(dots, titles[mine.index].tolist())
    if outside.any():
        above = axes.scatter(
            done.index[outside], [high] * int(outside.sum()), marker="$\u2303$", color=OTHER, s=26, clip_on=False
        )
        hover(above, (titles[outside] + ", above the scale").tolist())
    axes.scatter([whole.idxmin()], [low], s=100, facecolors="none", edgecolors=INK, linewidths=1.1, clip_on=False)
    axes.set(yscale="log", xlim=(0, max(len(done) - 1, 1)), ylim=(low * 0.9, high))
    framed(axes, "policies measured", "replay KL, nats a token, on the calibration images")
    factors = (1, 2, 5) if high / low > 3 else range(1, 10)
    marks = [factor * 10.0**decade for decade in range(-10, 3) for factor in factors]
    axes.set_yticks([mark for mark in marks if low * 0.9 <= mark <= high])
    return figure


@styled()
def agreement(stability: pd.DataFrame, width: float = NARROW) -> Figure:
    """How far two disjoint sets of prompts agree, by their number: classes (adjusted Rand index) and graded score (rank
    correlation), the mean and 10 to 90 % of the draws.

    Args:
        stability: of `headscope.heads.stability.measure_stability`.
        width: of the figure.
    """
    table = stability[stability["what"] == "prompts"].assign(count=lambda rows: rows["value"].astype(int))
    figure = blank(width, 2.3, f"Agreement of two sets of prompts, up to {table['count'].iloc[-1]} prompts each")
    axes = figure.subplots()
    kinds = {"rand": ("classes, adjusted Rand index", SEMANTIC), "rank": ("score, rank correlation", SPATIAL)}
    for name, (label, kind) in kinds.items():
        low, high = table[f"{name}_low"], table[f"{name}_high"]
        axes.fill_between(table["count"], low, high, color=COLOURS[kind], alpha=0.18, linewidth=0)
        axes.plot(table["count"], table[name], color=COLOURS[kind], label=label)
        dots = axes.scatter(table["count"], table[name], s=16, color=COLOURS[kind], linewidths=0, clip_on=False)
        told = zip(table["count"], table[name], low, high, strict=True)
        hover(dots, [f"{n} prompts: {mean:.3f}, 10 to 90 %: {a:.3f} to {b:.3f}" for n, mean, a, b in told])
    axes.set(xscale="log", ylim=(min(0.0, float(table["rand_low"].min())), 1.0))
    framed(axes, "prompts in each set", "agreement")
    axes.set_xticks(table["count"])
    axes.legend(loc="lower right")
    return figure


@styled()
def ablation(table: pd.DataFrame, width: float = NARROW) -> Figure:
    """Semantic score of each head against what it needs: -1, only the window helps, to 1, only heavy tokens do.

    Args:
        table: layer, kv_head, class, semantic_score, heavy_preference (none where the head loses nothing) and the losses
            window, heavy and both, in nats a token.
        width: of the figure.
    """
    figure = blank(width, 2.3, f"What {int(table['heavy_preference'].notna().sum())} heads need, by semantic score")
    _needs(figure.subplots(), table)
    return figure


@styled()
def ablation_panels(found: Sequence[Any]) -> Figure:
    """The same, a panel a budget.

    Args:
        found: of each, as `headscope sensitivity` finds it: table, keep, and correlation, low, high (rank, with its interval).
    """
    figure = blank(3.4 * len(found) + 0.3, 3.3)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, found, strict=True):
        _needs(axes, one.table)
        axes.set_title(f"{one.keep}: rank correlation {one.correlation:.2f} ({one.low:.2f} to {one.high:.2f})", fontsize=9)
    panels[-1].legend(title="area: the larger loss", loc="lower right")
    panels[0].set_ylabel("prefers   window ←   → heavy tokens")
    return figure


def _needs(axes: Axes, table: pd.DataFrame) -> None:
    """A dot a head; its area grows with the larger of the two losses."""
    felt = table[table["heavy_preference"].notna()]
    loss = felt[["window", "heavy"]].max(axis=1)
    area = 16 + 120 * loss / max(float(loss.max()) if len(loss) else 0.0, 1e-12)
    for kind in CLASSES:
        mine = felt[felt["class"] == kind]
        if len(mine):
            look: Any = {"color": COLOURS[kind], "alpha": 0.75, "linewidths": 0, "label": kind, "clip_on": False}
            dots = axes.scatter(mine["semantic_score"], mine["heavy_preference"], s=area[mine.index], **look)
            hover(dots, [_needed(row) for row in mine.to_dict("records")])
    axes.axhline(0, color=OTHER, linewidth=0.7, linestyle=(0, (1, 3)), zorder=0)
    axes.set(xlim=(0, 1), ylim=(-1, 1))
    framed(axes, "semantic score", "prefers the window (-1) or heavy tokens (1)")


def _needed(row: dict[str, float]) -> str:
    return (
        f"layer {row['layer']:g} head {row['kv_head']:g}: window loses {nats(row['window'])}, "
        f"heavy tokens {nats(row['heavy'])}, half of each {nats(row['both'])}"
    )


@styled()
def front(points: pd.DataFrame, chosen: pd.DataFrame, plain: float) -> Figure:
    """Every measured policy by share of the plain cache and loss, the front as a line, the chosen ones named.

    Args:
        points: cache_bytes, kl (nats a token) and on_front of each.
        chosen: keep, kept_ratio and kl of the policies that were written.
        plain: bytes of the plain cache.
    """
    figure = blank(6.2, 3.6, f"{len(points)} policies by bytes and loss")
    axes = figure.subplots()
    axes.scatter(100 * points["cache_bytes"] / plain, points["kl"], s=9, color=QUIET, alpha=0.5, linewidths=0, label="measured")
    best = points[points["on_front"]].sort_values("cache_bytes")
    axes.plot(100 * best["cache_bytes"] / plain, best["kl"], color=COLOURS[SPATIAL], drawstyle="steps-post", label="front")
    for row in chosen.itertuples(index=False):
        place = (100 * row.kept_ratio, row.kl)
        axes.annotate(str(row.keep), place, textcoords="offset points", xytext=(4, 5), fontsize=8, color=INK)
    axes.set(xlabel="kept, % of the plain cache", ylabel="KL, nats a token", yscale="log")
    axes.legend()
    return figure
