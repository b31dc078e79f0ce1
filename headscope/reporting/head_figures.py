"""The drawings of heads: the map, footprints, attention by distance, and what each keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from headscope.policy import Policy
from headscope.policy.footprint import head_bytes
from headscope.reporting.svg import Axes, dot, drawing, group, heat, path, rect, text
from headscope.reporting.words import percent, size

DOUBT = 0.9  # confidence below which a head is marked
SPACIOUS = 24.0  # side of a cell from which on it holds its score
WIDE, NARROW = 760.0, 350.0


def head_map(table: pd.DataFrame, width: float = 400.0) -> str:
    """Layers downward, heads across. Hue: class; strength: how far the semantic score lies from the middle; the score's
    digits where they fit; a dot where the class is uncertain."""
    layers, heads = int(table["layer"].max()) + 1, int(table["kv_head"].max()) + 1
    left, top = 26.0, 20.0
    cell = cell_side(heads, width)
    parts = [text(0, 13, "layer", "tick")] if cell > 30 else []
    for row in table.to_dict("records"):
        x, y = left + row["kv_head"] * cell, top + row["layer"] * cell
        score, confidence = float(row["semantic_score"]), float(row["confidence"])
        title = (
            f"layer {row['layer']} head {row['kv_head']}: {row['class']}, semantic score {score:.2f}, "
            f"confidence {confidence:.2f}"
        )
        strength = min(0.16 + 1.68 * abs(score - 0.5), 1.0)
        box = (x, y, cell - min(2.0, 0.12 * cell), cell - min(2.0, 0.12 * cell))
        inner = [rect(*box, "cell"), rect(*box, str(row["class"]), opacity=strength)]
        if cell >= SPACIOUS:
            style = "in-strong" if strength > 0.9 else "in-middle" if strength > 0.65 else "in-pale"
            inner.append(text(x + cell / 2 - 1, y + cell / 2 + 3.5, f"{score:.2f}"[1:] if score < 1 else "1", style, "middle"))
        if confidence < DOUBT:
            inset = min(7.0, cell / 3)
            inner.append(dot(x + cell - 2 - inset, y + inset, "doubt", radius=max(1.3, min(3.0, cell / 9))))
        parts.append(group(inner, title))
    every = 1 if cell >= 15 else 4
    parts += [text(left - 7, top + n * cell + cell / 2 + 3, str(n), "tick", "end") for n in range(0, layers, every)]
    parts += [text(left + (n + 0.5) * cell - 1, 13, str(n), "tick", "middle") for n in range(0, heads, every)]
    return drawing(left + heads * cell, top + layers * cell, parts, f"Head map: {layers} layers by {heads} heads")


def cell_side(heads: int, width: float = 400.0) -> float:
    """Side of a head map's cell."""
    return min(46.0, (width - 26.0) / heads)


def footprint(mass: torch.Tensor, label: str) -> str:
    """Where one head looks: attention by (rows up, columns across) around the query, cropped to where it is.

    Args:
        mass: float32 [rows, 2 cols - 1], the query in row 0, column cols - 1.
    """
    values = mass.numpy()
    middle = values.shape[1] // 2
    up, across = _reach(values, middle)
    shown = values[: up + 1, middle - across : middle + across + 1][::-1]  # the query's row at the bottom
    cell = 200 / (2 * across + 1)
    tall = 110.0  # one height, so that drawings line up; the query's row stands on the lower edge
    top = max(tall - (up + 1) * cell, 0.0)
    tall = max(tall, (up + 1) * cell)
    parts = [rect(0, 0, 200, tall, "ground"), f'<g transform="translate(0 {top:.4g})">', *heat(shown, cell), "</g>"]
    parts.append(rect(across * cell + 0.5, tall - cell + 0.5, max(cell - 1.5, 1), max(cell - 1.5, 1), "query"))
    return drawing(200, tall, [group(parts, described(mass))], f"{label}: {described(mass)}")


def described(mass: torch.Tensor, most: int = 2) -> str:
    """A footprint in words: the places that hold a tenth or more, or over how many places it is spread."""
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
    """Rows and columns around the query that hold `share` of the mass; at least 3 and 5, so that drawings compare."""
    total = values.sum() or 1.0
    rows, columns = min(3, values.shape[0] - 1), min(5, middle)
    while rows < values.shape[0] - 1 or columns < middle:
        inside = values[: rows + 1, max(middle - columns, 0) : middle + columns + 1].sum()
        if inside >= share * total:
            break
        rows, columns = min(rows + 1, values.shape[0] - 1), min(columns + 1, middle)
    return rows, columns


def lags(mass: torch.Tensor, chosen: list[tuple[int, int, str]], row_length: int, width: float = WIDE) -> str:
    """Attention by how many tokens back, on a logarithmic scale: sharp and diffuse heads differ a hundredfold.

    Args:
        mass: float32 [layers, KV heads, lags]. chosen: (layer, KV head, class); the second of a class is dashed.
    """
    last = min(mass.shape[-1], 3 * row_length + 4)
    axes = Axes(width, 250, (0, max(last - 1, 1)), (1e-4, 1.0), log=True)
    parts = axes.frame("tokens back", "share of attention", ".4g", factors=(1,))
    for rows in range(1, last // row_length + 1):
        x, _ = axes.place(rows * row_length, 0)
        parts.append(path([(x, axes.top), (x, axes.height - axes.bottom)], "mark"))
        if x < axes.width - 90 and (rows == 1 or width > 500):
            parts.append(text(x + 5, axes.top + 10, "the row above" if rows == 1 else f"{rows} rows above", "tick"))
    seen: set[str] = set()
    for layer, head, kind in chosen:
        points = [axes.place(lag, float(value)) for lag, value in enumerate(mass[layer, head, :last])]
        dash = " dash-2" if kind in seen else ""
        parts.append(path(points, f"line {kind}-line{dash}", f"layer {layer} head {head}"))
        seen.add(kind)
    return drawing(width, 250, parts, "Attention by distance in tokens for the most spatial and the most semantic heads")


def budgets(policy: Policy, dtype: str, sequences: int, width: float = WIDE) -> str:
    """A bar a head, layer by layer: recent tokens, tokens kept by score, and what the stride's buffer takes.

    Args:
        dtype, sequences: of the limit, for the bytes at the right; pictures times streams.
    """
    layers, heads = policy.window.shape
    kept = {name: getattr(policy, name).numpy() for name in ("anchor", "window", "heavy")}
    buffer = np.where(kept["heavy"] > 0, min(policy.stride, policy.shape.geometry.tokens), 1)
    nbytes = sequences * head_bytes(
        kept["window"],
        kept["heavy"],
        kept["anchor"],
        policy.stride,
        shape=policy.shape,
        prefix=policy.prefix,
        dtype=dtype,
    )
    top = float((kept["anchor"] + kept["window"] + kept["heavy"] + buffer).max())
    height = 44.0 if layers <= 12 else 28.0
    left, right, pitch = 26.0, 112.0 if width > 500 else 62.0, height + 8.0
    bar = (width - left - right) / heads
    parts = []
    for layer in range(layers):
        base = (layer + 1) * pitch
        parts.append(text(left - 8, base, str(layer), "tick", "end"))
        parts.append(path([(left, base), (left + heads * bar, base)], "grid"))
        for head in range(heads):
            anchor, window, heavy = (int(kept[name][layer, head]) for name in ("anchor", "window", "heavy"))
            title = f"layer {layer} head {head}: {window} recent, {heavy} by score"
            title += (f", {anchor} first tokens" if anchor else "") + f", {size(nbytes[layer, head])}"
            y, inner = base, []
            waiting = int(buffer[layer, head])
            for count, kind in ((anchor, "anchor"), (window, "spatial"), (heavy, "semantic"), (waiting, "buffer")):
                if count:
                    tall = count / top * height
                    y -= tall
                    inner.append(rect(left + head * bar, y, bar - max(0.6, min(4.0, bar * 0.15)), tall, kind))
            parts.append(group(inner, title))
        share = percent(nbytes[layer].sum() / nbytes.sum())
        told = f"{share} · {size(nbytes[layer].sum())}" if width > 500 else size(nbytes[layer].sum())
        parts.append(text(width, base, told, "tick", "end"))
    return drawing(width, layers * pitch + 4, parts, "Tokens kept by every head, layer by layer")
