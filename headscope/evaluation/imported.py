"""Scores that others gave, brought back: a JSON line a picture, as GenEval's scorer writes them, or a score a variant."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from headscope.errors import DataError
from headscope.storage import read_text

_SHAPES = (
    '{"filename": "VARIANT/00000/samples/0000.png", "tag": ..., "correct": true} or '
    '{"variant": ..., "category": ..., "score": ...}'
)


def read_results(path: str | Path, variants: list[str]) -> pd.DataFrame:
    """Scores by variant and category.

    GenEval's `evaluate_images.py` writes a line a picture with `filename`, `tag` and `correct`; the variant is the folder under
    the evaluation's in that path, and `overall` the mean of the tags. Other scorers: a line a variant and category.

    Args:
        variants: names of the evaluation's folders.
    Returns:
        variant, category, score, pictures (0 where it is not known).
    Raises:
        DataError: missing file, a line of neither shape, or of a variant that this evaluation does not have.
    """
    path = Path(path)
    text = read_text(path, "file of results")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    pictures: list[tuple[str, str, bool]] = []
    given: list[tuple[str, str, float, int]] = []
    for number, line in lines:
        where = f"{path}: line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({error}).") from None
        if isinstance(found, dict) and {"filename", "tag", "correct"} <= set(found):
            parents = Path(str(found["filename"])).parts[:-1]
            name = next((part for part in reversed(parents) if part in variants), None)  # --out may be so called too
            if name is None:
                raise DataError(f"{where}: {found['filename']} lies in none of the folders {', '.join(variants)}.")
            if not isinstance(found["correct"], bool):
                raise DataError(f"{where}: correct {found['correct']!r}; expected true or false.")
            pictures.append((name, str(found["tag"]), found["correct"]))
        elif isinstance(found, dict) and {"variant", "category", "score"} <= set(found):
            if found["variant"] not in variants:
                raise DataError(f"{where}: variant {found['variant']}; this evaluation has {', '.join(variants)}.")
            score = found["score"]
            if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
                raise DataError(f"{where}: score {score!r}; expected a number.")
            if any(one[:2] == (found["variant"], str(found["category"])) for one in given):
                raise DataError(f"{where}: {found['variant']} has a score of {found['category']} already; leave one out.")
            given.append((found["variant"], str(found["category"]), float(found["score"]), 0))
        else:
            raise DataError(f"{where}: of no known shape; expected {_SHAPES}.")
    if not pictures and not given:
        raise DataError(f"{path}: holds no result; expected {_SHAPES}.")
    rows = list(given)
    if pictures:
        table = pd.DataFrame(pictures, columns=["variant", "category", "correct"])
        for name, part in table.groupby("variant"):
            by_tag = part.groupby("category")["correct"].agg(["mean", "size"])
            rows += [(name, tag, float(row["mean"]), int(row["size"])) for tag, row in by_tag.iterrows()]
            rows.append((name, "overall", float(by_tag["mean"].mean()), len(part)))
    return pd.DataFrame(rows, columns=["variant", "category", "score", "pictures"])
