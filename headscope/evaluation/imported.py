"""Scores that others gave, brought back: a JSON line an image, as GenEval's scorer writes them, or a score a variant."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from headscope.errors import DataError
from headscope.facts import NUMBER
from headscope.storage import parse_line, read_lines, text_fault

_SHAPES = (
    '{"filename": "VARIANT/00000/samples/0000.png", "tag": ..., "correct": true} or '
    '{"variant": ..., "category": ..., "score": ...}'
)


def read_results(path: str | Path, variants: list[str], prompts: int | None = None, seeds: int | None = None) -> pd.DataFrame:
    """Scores by variant and category.

    GenEval's `evaluate_images.py` writes a line an image with `filename`, `tag` and `correct`; the variant is the folder under
    the evaluation's in that path, and `overall` the mean of the tags. Other scorers: a line a variant and category.

    Args:
        path: JSON lines.
        variants: names of the evaluation's folders.
        prompts: how many it has, where an image of more is to be refused.
        seeds: images a prompt, likewise.

    Returns:
        Columns variant, category, score, images (0 where it is not known).

    Raises:
        DataError: missing file, a line of neither shape, of a variant or an image that this evaluation does not have, or of
            one that was scored already.
    """
    path = Path(path)
    images: list[tuple[str, str, bool]] = []
    given: list[tuple[str, str, float, int]] = []
    first: dict[str, str] = {}
    for line in read_lines(path, "file of results"):
        where = line.where
        found = parse_line(line, _SHAPES)
        if isinstance(found, dict) and {"filename", "tag", "correct"} <= set(found):
            parts = Path(str(found["filename"])).parts
            at = next((n for n in reversed(range(len(parts) - 1)) if parts[n] in variants), None)  # --out may be so called too
            if at is None:
                raise DataError(f"{where}: {found['filename']} lies in none of the folders {', '.join(variants)}.")
            if not isinstance(found["correct"], bool):
                raise DataError(f"{where}: correct {found['correct']!r}; expected true or false.")
            if text_fault(found["tag"]):
                raise DataError(f'{where}: tag {found["tag"]!r}; expected a category such as "counting".')
            name, image = parts[at], "/".join(parts[at:])
            if not _there(parts[at + 1 :], prompts, seeds):
                raise DataError(f"{where}: {image} is none of {prompts} prompts x {seeds} images; leave it out.")
            if image in first:
                raise DataError(f"{where}: {image} was scored in {first[image]} already; leave one out.")
            first[image] = where.removeprefix(f"{path}: ")
            images.append((name, found["tag"], found["correct"]))
        elif isinstance(found, dict) and {"variant", "category", "score"} <= set(found):
            if found["variant"] not in variants:
                raise DataError(f"{where}: variant {found['variant']}; this evaluation has {', '.join(variants)}.")
            score = found["score"]
            if not NUMBER.accepts(score):
                raise DataError(f"{where}: score {repr(score)[:20]}; expected a number.")
            if text_fault(found["category"]):
                raise DataError(f'{where}: category {found["category"]!r}; expected a name such as "counting".')
            if any(one[:2] == (found["variant"], found["category"]) for one in given):
                raise DataError(f"{where}: {found['variant']} has a score of {found['category']} already; leave one out.")
            given.append((found["variant"], found["category"], float(score), 0))
        else:
            raise DataError(f"{where}: of no known shape; expected {_SHAPES}.")
    if not images and not given:
        raise DataError(f"{path}: holds no result; expected {_SHAPES}.")
    rows = list(given)
    if images:
        table = pd.DataFrame(images, columns=["variant", "category", "correct"])
        for name, part in table.groupby("variant"):
            by_tag = part.groupby("category")["correct"].agg(["mean", "size"])
            rows += [(name, tag, float(row["mean"]), int(row["size"])) for tag, row in by_tag.iterrows()]
            rows.append((name, "overall", float(by_tag["mean"].mean()), len(part)))
        if both := {one[:2] for one in given} & {one[:2] for one in rows[len(given) :]}:
            name, category = min(both)
            raise DataError(f"{path}: {name} has a score of {category} and images that make one too; leave one out.")
    return pd.DataFrame(rows, columns=["variant", "category", "score", "images"])


def _there(place: tuple[str, ...], prompts: int | None, seeds: int | None) -> bool:
    """Whether `00000/samples/0000.png` is an image of the evaluation; of other paths nobody knows."""
    match = re.fullmatch(r"(\d+)/samples/(\d+)\.png", "/".join(place))
    if match is None or prompts is None or seeds is None:
        return True
    return int(match[1]) < prompts and int(match[2]) < seeds
