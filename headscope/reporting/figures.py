"""The charts of a report: losses, rows of the picture, search. Each is a function of its data and the width to draw for."""

from __future__ import annotations

import math

import pandas as pd

from headscope.policy import CONTROLS
from headscope.reporting.svg import Axes, apart, dot, drawing, path, rect, text
from headscope.reporting.words import nats

WIDE, NARROW = 760.0, 350.0  # for a column on a desk, for a telephone


def losses(methods: pd.DataFrame, width: float = WIDE) -> str:
    """Replay KL of each method with its interval, the best on top; controls lose so much that they stand in the table alone."""
    table = methods[~methods["method"].isin(["full", *CONTROLS])].sort_values("replay_kl", kind="stable")
    rows = table.to_dict("records")
    whiskers = "kl_high" in table and bool(table["kl_high"].notna().all())
    top = max(float((table["kl_high"] if whiskers else table["replay_kl"]).max()), 1e-12)
    left, line = (100.0, 32.0) if width > 500 else (78.0, 32.0)
    scale = (width - left - 66) / top
    parts = []
    for i, row in enumerate(rows):
        y, value = i * line + 15, max(float(row["replay_kl"]), 0.0)
        kind = "best" if row["method"] == "searched" else "other"
        title = f"{row['method']}: {nats(value)} nats a token"
        end = left + value * scale
        if whiskers:
            low, high = (left + max(float(row[name]), 0.0) * scale for name in ("kl_low", "kl_high"))
            title += f", between {nats(row['kl_low'])} and {nats(row['kl_high'])} (95 %)"
            parts.append(path([(low, y), (high, y)], f"whisker {kind}-whisker", title))
            end = high
        parts.append(text(left - 12, y + 4, str(row["method"]), "strong" if kind == "best" else "label", "end"))
        parts.append(path([(left, y), (left + value * scale, y)], f"stem {kind}-stem"))
        parts.append(dot(left + value * scale, y, kind, title, 6 if kind == "best" else 5))
        parts.append(text(max(end, left + value * scale) + 11, y + 4, nats(value), "strong" if kind == "best" else "tick"))
    base = path([(left, 0), (left, len(rows) * line - 2)], "grid")
    return drawing(width, len(rows) * line, [base, *parts], f"Replay KL: {_spoken(rows)}")


def _spoken(rows: list[dict[str, object]]) -> str:
    return ", ".join(f"{row['method']} {nats(float(str(row['replay_kl'])))}" for row in rows)


def rows_of_image(by_row: pd.DataFrame, shown: list[str], width: float = WIDE) -> str:
    """Loss by row of the picture, a line a method; `shown` in the order of the dashes."""
    part = by_row[by_row["method"].isin(shown)]
    height = 250.0
    axes = Axes(width, height, (0, float(part["row"].max())), (0, float(part["kl"].max()) * 1.05 + 1e-9), right=78)
    parts = axes.frame("row of the picture", "replay KL, nats a token")
    ends = []
    for number, name in enumerate(shown):
        mine = part[part["method"] == name].sort_values("row")
        points = [axes.place(row, kl) for row, kl in zip(mine["row"], mine["kl"], strict=True)]
        style = "best-line" if name == "searched" else f"other-line dash-{number % 4}"
        parts.append(path(points, f"line {style}", name))
        ends.append(points[-1])
    for name, (x, y), label in zip(shown, ends, apart([y for _, y in ends], 15, axes.top, height - 12), strict=True):
        parts.append(path([(x + 3, y), (x + 10, label)], "lead"))
        parts.append(text(x + 13, label + 4, name, "strong" if name == "searched" else "label"))
    return drawing(width, height, parts, f"Loss by row of the picture for {', '.join(shown)}")


def history(trials: pd.DataFrame, width: float = WIDE) -> str:
    """Every measured policy in the order of measuring, and the best so far; incumbents are larger and coloured."""
    done = trials[trials["kl"].notna()].reset_index(drop=True)
    whole = done["kl"].where(done["state"] == "complete")  # what was given up was measured on some pictures only
    # The scale ends where the incumbents do, or the worst of the better nine tenths: a bad proposal says nothing more.
    first = done["label"].astype(str).str.startswith(("preset", "solver"))
    low = max(float(whole.min()), 1e-9)
    high = max(float(whole.quantile(0.9)), float(done.loc[first, "kl"].max()) if first.any() else 0.0, low * 1.2)
    axes = Axes(width, 270, (0, max(len(done) - 1, 1)), (low * 0.9, high * 1.1), log=True)
    factors: tuple[float, ...] = (1, 2, 5) if high / low > 2.5 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    parts = axes.frame("policies measured", "replay KL, nats a token, on the calibration pictures", factors=factors)
    best = whole.cummin().ffill()
    steps: list[tuple[float, float]] = []
    for i, value in best.dropna().items():
        x, y = axes.place(i, float(value))
        steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    parts.append(path(steps, "line best-line"))
    for i, (label, kl, state) in enumerate(
        zip(done["label"].astype(str), done["kl"].astype(float), done["state"], strict=True)
    ):
        kind = next((name for name in ("preset", "solver") if label.startswith(name)), "trial")
        x, y = axes.place(i, max(kl, low * 0.9))
        if state == "pruned":
            kind, label = "given-up", f"{label}, given up"
        if kl > high * 1.1:
            parts.append(path([(x - 4, y + 5), (x, y), (x + 4, y + 5)], "outside", f"{label}: {nats(kl)}, above the scale"))
        else:
            parts.append(dot(x, y, f"{kind}-dot", f"{label}: {nats(kl)}", 3 if kind in ("trial", "given-up") else 4.5))
    x, y = axes.place(int(whole.idxmin()), low)
    parts.append(f'<circle cx="{x:.5g}" cy="{y:.5g}" r="7" class="ring"/>')
    return drawing(width, 270, parts, f"Search history: {len(done)} policies, the best loses {nats(low)} nats a token")


def scores(table: pd.DataFrame, width: float = NARROW, bins: int = 20) -> str:
    """How many heads have which semantic score, the two classes on top of each other."""
    height, left, bottom = 190.0, 26.0, 34.0
    number = (table["semantic_score"].clip(0, 1 - 1e-9) * bins).astype(int)
    counts = {kind: number[table["class"] == kind].value_counts() for kind in ("spatial", "semantic")}
    top = max(int(number.value_counts().max()), 1)
    bar, unit = (width - left - 8) / bins, (height - bottom - 20) / top
    parts = [text(0, 10, "heads", "label"), text(width - 8, height - 3, "semantic score", "label", "end")]
    for mark in sorted({0, math.ceil(top / 2), top}):
        y = height - bottom - mark * unit
        parts += [path([(left, y), (width - 8, y)], "grid"), text(left - 6, y + 4, str(mark), "tick", "end")]
    for place in range(bins):
        y = height - bottom
        for kind, count in counts.items():
            tall = int(count.get(place, 0))
            if tall:
                y -= tall * unit
                title = f"{tall} {kind}, score {place / bins:.2f} to {(place + 1) / bins:.2f}"
                parts.append(rect(left + place * bar + 1, y, bar - 2, tall * unit, kind, title))
    parts += [text(left + x * bins * bar, height - bottom + 14, f"{x:g}", "tick", "middle") for x in (0, 0.5, 1)]
    return drawing(width, height, parts, "How the semantic scores of the heads are distributed")


def agreement(stability: pd.DataFrame, width: float = NARROW) -> str:
    """How far two disjoint sets of prompts agree, by their number, with 10 to 90 % of the draws as whiskers."""
    table = stability[stability["what"] == "prompts"].reset_index(drop=True)
    low = min(0.0, float(table["rand_low"].min()))
    axes = Axes(width, 230, (0, max(len(table) - 1, 1)), (low, 1.0), right=22)
    parts = axes.frame("prompts in each set", "agreement", marks=[(i, str(v)) for i, v in enumerate(table["value"])])
    for name, style in (("rand", "semantic"), ("rank", "spatial")):
        points = [axes.place(i, float(value)) for i, value in enumerate(table[name])]
        parts.append(path(points, f"line {style}-line"))
        for i, row in enumerate(table.to_dict("records")):
            title = (
                f"{row['value']} prompts: {row[name]:.3f}, 10 to 90 %: {row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}"
            )
            parts.append(path([axes.place(i, row[f"{name}_low"]), axes.place(i, row[f"{name}_high"])], "whisker other-whisker"))
            parts.append(dot(*points[i], style, title, 4))
    return drawing(width, 230, parts, f"Agreement of two sets of prompts, up to {table['value'].iloc[-1]} prompts each")


def needs(table: pd.DataFrame, width: float = NARROW) -> str:
    """Semantic score of each head against what it needs: -1, only the window helps, to 1, only heavy tokens do."""
    felt = table[table["needs"].notna()]
    axes = Axes(width, 230, (0.0, 1.0), (-1.0, 1.0), right=22)
    parts = axes.frame("semantic score", "needs: window (-1) or heavy tokens (1)")
    parts.append(path([axes.place(0, 0), axes.place(1, 0)], "mark"))
    top = max(float(felt[["window", "heavy"]].max(axis=None)), 1e-12) if len(felt) else 1.0
    for row in felt.sort_values("needs").to_dict("records"):
        loss = max(row["window"], row["heavy"])
        title = (
            f"layer {row['layer']} head {row['kv_head']}: window loses {nats(row['window'])}, "
            f"heavy tokens {nats(row['heavy'])}, half of each {nats(row['both'])}"
        )
        x, y = axes.place(float(row["semantic_score"]), float(row["needs"]))
        parts.append(dot(x, y, f"{row['class']} seen-through", title, 3 + 6 * (loss / top) ** 0.5))
    return drawing(width, 230, parts, f"What {len(felt)} heads need, by semantic score")
