"""Scores that others measured: a head map as a CSV file, such as the published ones of Janus-Pro."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from headscope.errors import DataError
from headscope.heads.classifier import THRESHOLD
from headscope.heads.files import SEMANTIC, SPATIAL, Heads


def read_scores(path: str | Path, model_shape: str, threshold: float = THRESHOLD) -> Heads:
    """Heads whose graded score is the number in the file, and whose class is the paper's rule (2510.18716): semantic above
    `threshold`. `confidence` is how far the score lies from it, on a logistic scale of their standard deviation.

    Args:
        path: CSV without a header, a line a layer, a number in 0 .. 1 a KV head. model_shape: "LAYERSxHEADS", such as "24x16".

    Raises:
        DataError: no such file, not that many lines or numbers in a line, or a number that is none or outside 0 .. 1.
    """
    path = Path(path)
    match = re.fullmatch(r"(\d+)x(\d+)", model_shape.strip())
    if match is None:
        raise DataError(f"model shape {model_shape}: expected LAYERSxHEADS, such as 24x16.")
    layers, heads = int(match[1]), int(match[2])
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name a CSV file with a line a layer and a number a head.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    if len(lines) != layers:
        raise DataError(f"{path}: has {len(lines)} lines, expected {layers}, a line a layer; check --model-shape.")
    scores = np.empty((layers, heads))
    for layer, line in enumerate(lines):
        cells = line.split(",")
        if len(cells) != heads:
            raise DataError(f"{path}: line {layer + 1} has {len(cells)} numbers, expected {heads}, one a head.")
        for head, cell in enumerate(cells):
            try:
                value = float(cell)
            except ValueError:
                raise DataError(f"{path}: layer {layer} head {head} is '{cell.strip()}', expected a number.") from None
            if not 0 <= value <= 1:
                raise DataError(f"{path}: layer {layer} head {head} is {value}, expected a score from 0 to 1.")
            scores[layer, head] = value
    flat = scores.ravel()
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
