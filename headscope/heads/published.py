"""Scores that others measured: a head map as a CSV file, such as the published ones of Janus-Pro."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from headscope.errors import DataError
from headscope.heads.classifier import THRESHOLD
from headscope.heads.files import SEMANTIC, SPATIAL, Heads
from headscope.storage import read_lines


def read_scores(path: str | Path, model_shape: str, threshold: float = THRESHOLD) -> Heads:
    """Heads whose graded score is the number in the file, and whose class is the paper's rule (2510.18716): semantic above
    `threshold`. `confidence` is how far the score lies from it, on a logistic scale of their standard deviation.

    Args:
        path: CSV without a header, a line a layer, a number in 0 .. 1 a KV head.
        model_shape: "LAYERSxHEADS", such as "24x16".
        threshold: from 0 to 1; a head with a score above it is semantic.

    Raises:
        DataError: no such file, not that many lines or numbers in a line, or a number that is none or outside 0 .. 1.
    """
    path = Path(path)
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", model_shape.strip())
    if match is None:
        raise DataError(f"model shape {model_shape}: expected LAYERSxHEADS, such as 24x16.")
    layers, heads = int(match[1]), int(match[2])
    lines = read_lines(path, "file of scores (CSV, a line a layer and a number a head)")
    if len(lines) != layers:
        raise DataError(f"{path}: has {len(lines)} lines, expected {layers}, a line a layer of the model.")
    rows = []
    for layer, line in enumerate(lines):
        cells = line.text.split(",")
        if len(cells) != heads:
            raise DataError(f"{line.where} has {len(cells)} numbers, expected {heads}, one a head.")
        rows.append([_score(f"{line.where}: layer {layer} head {head}", cell) for head, cell in enumerate(cells)])
    flat = np.array(rows).ravel()
    posterior = 1 / (1 + np.exp(-(flat - threshold) / max(flat.std(), 1e-9)))
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), heads),
            "kv_head": np.tile(np.arange(heads), layers),
            "class": np.where(flat > threshold, SEMANTIC, SPATIAL),
            "semantic_score": flat,
            "confidence": np.maximum(posterior, 1 - posterior),
            "stability": np.nan,
        }
    )
    return Heads(table, {"source": path.name, "shape": [layers, heads], "threshold": threshold})


def _score(where: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{where} is {cell.strip()!r}, expected a number.") from None
    if not 0 <= value <= 1:
        raise DataError(f"{where} is {value}, expected a score from 0 to 1.")
    return value
