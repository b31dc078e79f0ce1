"""The figures of a report, each a function of the data it shows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from headscope.policy import Policy
from headscope.policy.budget import head_bytes
from headscope.reporting.svg import Axes, dot, drawing, heat, path, rect, text


def head_map(table: pd.DataFrame) -> str:
    """Layers downward, heads across; colour from spatial to semantic, a small mark where the class is uncertain."""
    layers, heads = int(table["layer"].max()) + 1, int(table["kv_head"].max()) + 1
    cell = max(8.0, min(36.0, 620.0 / heads))
    parts = []
    for row in table.itertuples():
        x, y = 34 + row.kv_head * cell, 18 + row.layer * cell
        score, confidence = float(row.semantic_score), float(row.confidence)
        title = f"layer {row.layer} head {row.kv_head}: {row._3}, semantic score {score:.2f}, confidence {confidence:.2f}"
        kind = "semantic" if score >= 0.5 else "spatial"
        strength = 0.14 + 0.86 * abs(score - 0.5) * 2
        parts.append(rect(x, y, cell - 2, cell - 2, "cell", title))
        parts.append(rect(x, y, cell - 2, cell - 2, kind, title, f'opacity="{min(strength, 1):.3f}"'))
        if confidence < 0.9:
            parts.append(dot(x + cell / 2 - 1, y + cell / 2 - 1, "doubt", title, max(1.5, cell / 14)))
    parts += [text(28, 18 + layer * cell + cell / 2 + 3, str(layer), "tick", "end") for layer in range(layers)]
    step = 1 if heads <= 16 else 4
    parts += [text(34 + head * cell + cell / 2, 12, str(head), "tick", "middle") for head in range(0, heads, step)]
    return drawing(40 + heads * cell, 22 + layers * cell, parts, f"Head map: {layers} layers by {heads} heads")


def footprint(mass: torch.Tensor, label: str) -> str:
    """Where one head looks: attention by (rows up, columns across) around the query, cropped to where it is.

    Args:
        mass: float32 [rows, 2 cols - 1], the query in row 0, column cols - 1.
    """
    values = mass.numpy()
    middle = values.shape[1] // 2
    reach_rows, reach_columns = _reach(values, middle)
    shown = values[: reach_rows + 1, middle - reach_columns : middle + reach_columns + 1][::-1]  # the query's row below
    cell = 200 / max(2 * reach_columns + 1, 1)
    parts = [rect(0, 0, 200, (reach_rows + 1) * cell, "paper")]
    parts += heat(shown, 0, 0, cell)
    query = (reach_columns * cell, reach_rows * cell)
    parts.append(rect(*query, cell - 0.5, cell - 0.5, "query", f"the query itself: {values[0, middle]:.1%}"))
    return drawing(200, (reach_rows + 1) * cell, parts, label)


def _reach(values: np.ndarray, middle: int, share: float = 0.9) -> tuple[int, int]:
    """Rows and columns around the query that hold `share` of the mass; at least 3 and 5, so that drawings compare."""
    total = values.sum() or 1.0
    rows, columns = 3, 5
    while rows < values.shape[0] - 1 or columns < middle:
        inside = values[: rows + 1, max(middle - columns, 0) : middle + columns + 1].sum()
        if inside >= share * total:
            break
        rows, columns = min(rows + 1, values.shape[0] - 1), min(columns + 1, middle)
    return rows, columns


def lags(curves: dict[str, torch.Tensor], chosen: list[tuple[int, int, str]], row_length: int) -> str:
    """Attention by how many tokens back, for a few heads."""
    mass = curves["lag_mass"]
    last = min(mass.shape[-1], 3 * row_length + 4)
    top = max(float(mass[layer, head, :last].max()) for layer, head, _ in chosen)
    axes = Axes(640, 200, (0, last - 1), (0, top * 1.05))
    parts = axes.frame("tokens back", "share of attention", ".0%")
    for rows in range(1, last // row_length + 1):
        x, _ = axes.place(rows * row_length, 0)
        parts.append(path([(x, axes.top), (x, axes.height - axes.bottom)], "mark"))
        if x < axes.width - 90:
            parts.append(text(x + 4, axes.top + 8, "the row above" if rows == 1 else f"{rows} rows above", "tick"))
    for layer, head, kind in chosen:
        points = [axes.place(lag, float(value)) for lag, value in enumerate(mass[layer, head, :last])]
        parts.append(path(points, f"line {kind}-line"))
    return drawing(640, 200, parts, "Attention by distance in tokens for the most spatial and the most semantic heads")


def budgets(policy: Policy) -> str:
    """A bar a head, layer by layer: recent tokens, tokens kept by score, and what the stride's buffer takes."""
    layers, heads = policy.window.shape
    sizes = (policy.window + policy.heavy + policy.anchor).float()
    buffer = torch.where(policy.heavy > 0, min(policy.stride, policy.shape.geometry.tokens), 1)
    top = float((sizes + buffer).max())
    width, height, gap = 680.0, 46.0, 10.0
    bar = (width - 120) / heads
    parts = []
    per_head = head_bytes(
        policy.window.numpy(),
        policy.heavy.numpy(),
        policy.anchor.numpy(),
        policy.stride,
        shape=policy.shape,
        prefix=policy.prefix,
        dtype="float32",
    )
    for layer in range(layers):
        base = (layer + 1) * (height + gap)
        parts.append(text(22, base - 2, str(layer), "tick", "end"))
        parts.append(path([(28, base), (28 + heads * bar, base)], "grid"))
        for head in range(heads):
            window, heavy, anchor = (int(t[layer, head]) for t in (policy.window, policy.heavy, policy.anchor))
            title = f"layer {layer} head {head}: window {window}, heavy {heavy}" + (f", anchor {anchor}" if anchor else "")
            y = base
            for count, kind in (
                (anchor, "anchor"),
                (window, "spatial"),
                (heavy, "semantic"),
                (int(buffer[layer, head]), "buffer"),
            ):
                tall = count / top * height
                y -= tall
                parts.append(rect(28 + head * bar, y, bar - max(1.0, bar * 0.15), tall, kind, title))
        share = per_head[layer].sum() / per_head.sum()
        parts.append(text(width, base - 2, f"{share:.0%} of the bytes", "tick", "end"))
    return drawing(width, layers * (height + gap) + 6, parts, "Tokens kept by every head, layer by layer")


def history(trials: pd.DataFrame) -> str:
    """Every measured policy in the order of measuring, and the best so far."""
    done = trials[trials["kl"].notna()].reset_index(drop=True)
    low, high = float(done["kl"].min()), float(done["kl"].quantile(0.98))
    axes = Axes(680, 230, (0, max(len(done) - 1, 1)), (low * 0.9, max(high, low * 1.2) * 1.1), log=True)
    parts = axes.frame("measured policies", "replay KL, nats a token")
    best = done["kl"].cummin()
    parts.append(path([axes.place(i, float(value)) for i, value in enumerate(best)], "line best-line"))
    for i, row in enumerate(done.itertuples()):
        label = str(row.label)
        kind = "preset-dot" if label.startswith("preset") else "solver-dot" if label.startswith("solver") else "trial-dot"
        parts.append(dot(*axes.place(i, float(row.kl)), kind, f"{label}: {row.kl:.4f}"))
    return drawing(680, 230, parts, "Search history")


def rows_of_image(by_row: pd.DataFrame, shown: list[str]) -> str:
    """Loss by row of the picture, a line a method."""
    part = by_row[by_row["method"].isin(shown)]
    axes = Axes(680, 220, (0, float(part["row"].max())), (0, float(part["kl"].max()) * 1.08 + 1e-9))
    parts = axes.frame("row of the picture", "replay KL, nats a token")
    ends: list[float] = []
    for name in sorted(shown, key=lambda n: float(part[part["method"] == n]["kl"].iloc[-1])):
        mine = part[part["method"] == name].sort_values("row")
        points = [axes.place(float(r.row), float(r.kl)) for r in mine.itertuples()]
        parts.append(path(points, f"line {'best-line' if name == 'searched' else 'other-line'}"))
        x, y = points[-1]
        while any(abs(y - other) < 11 for other in ends):
            y -= 11
        ends.append(y)
        parts.append(text(x - 4, y - 4, name, "label strong" if name == "searched" else "tick", "end"))
    return drawing(680, 220, parts, "Loss by row of the picture")


def losses(methods: pd.DataFrame) -> str:
    """Replay KL of each method with its interval, the best on top."""
    table = methods[methods["method"] != "full"].sort_values("replay_kl").reset_index(drop=True)
    top = float(table["kl_high"].max() if "kl_high" in table else table["replay_kl"].max()) * 1.05
    left, width, line = 84.0, 680.0, 30.0
    scale = (width - left - 70) / top
    parts = []
    for i, row in enumerate(table.itertuples()):
        y = i * line + 4
        kind = "best" if row.method == "searched" else "other"
        parts.append(text(left - 10, y + 15, str(row.method), "label strong" if kind == "best" else "label", "end"))
        title = f"{row.method}: {row.replay_kl:.4f} nats a token"
        parts.append(rect(left, y + 3, float(row.replay_kl) * scale, line - 12, kind, title))
        end = float(row.replay_kl)
        if "kl_high" in table:
            low, end = float(row.kl_low), float(row.kl_high)
            parts.append(path([(left + low * scale, y + 12), (left + end * scale, y + 12)], "whisker"))
        parts.append(text(left + end * scale + 8, y + 16, f"{row.replay_kl:.4f}", "tick"))
    return drawing(width, len(table) * line + 4, parts, "Replay KL of each method at the same bytes")
