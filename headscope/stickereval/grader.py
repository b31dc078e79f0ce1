"""StickerEval: does an image show what its prompt says? GenEval's rules (Ghosh et al., 2310.11513) for stickers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.intervals import mean_interval
from headscope.stickereval.detector import WEIGHTS, Detection, StickerDetector
from headscope.stickereval.prompts import TAGS, GradingPrompt, Wanted

SLACK = 0.1  # GenEval's threshold: share of the two sizes by which an offset is shortened
STEEP = 0.5  # GenEval's: a shortened offset of more than this share of the distance is a direction (30 degrees)


class StickerEval:
    """Grades images of 96 x 96 pixels by what a small detector finds in them.

    How often it is right: `reports/stickers/detector.csv`; how often it agrees with a human annotator on generated images:
    `agreement.csv` and `confusion.csv` there.
    """

    def __init__(self, weights: str | Path = WEIGHTS, device: str = "auto") -> None:
        self.detector = StickerDetector.load(weights, device)

    def grade(self, images: torch.Tensor | np.ndarray, prompts: Sequence[GradingPrompt]) -> pd.DataFrame:
        """One row an image.

        Args:
            images: [n, 96, 96, 3], uint8 or float in 0..1.
            prompts: n, what each was asked to show.

        Returns:
            Columns `tag, prompt, correct` (bool), `reason` (empty if correct), `found` (what is in the image).

        Raises:
            DataError: images of another shape, or not one prompt an image.
        """
        if len(images) != len(prompts):
            raise DataError(f"Found {len(images)} images for {len(prompts)} prompts; give one prompt an image.")
        rows = []
        for found, prompt in zip(self.detector.detect(images), prompts, strict=True):
            reasons = judge(found, prompt)
            rows.append((prompt.tag, prompt.prompt, not reasons, "; ".join(reasons), _listed(found)))
        return pd.DataFrame(rows, columns=["tag", "prompt", "correct", "reason", "found"])


def judge(found: list[Detection], prompt: GradingPrompt) -> list[str]:
    """What is wrong with an image, best detections first; an empty list if nothing is.

    single, two: at least as many of each class as asked, other things may be there too. counting: exactly as many.
    position: also in the relation asked for, between the best detections of each class. style: the style of the class, or, if
    the class is not there, of the best detection of anything: a wrong class does not count here, it does under `single`.
    """
    if prompt.tag == "style":
        return _wrong_styles(found, prompt.include)
    reasons: list[str] = []
    groups = [[one for one in found if one.name == wanted.name] for wanted in prompt.include]
    for wanted, group in zip(prompt.include, groups, strict=True):
        if len(group) < wanted.count or (prompt.tag == "counting" and len(group) != wanted.count):
            reasons.append(f"found {len(group)} x {wanted.name}, expected {wanted.count}")
    if reasons:
        return reasons
    for wanted, group in zip(prompt.include, groups, strict=True):
        if wanted.relation is None or wanted.other is None:
            continue
        other = prompt.include[wanted.other]
        seen = [relations(a, b) for a in group[: wanted.count] for b in groups[wanted.other][: other.count]]
        if not all(wanted.relation in each for each in seen):
            words = " and ".join(sorted(set().union(*seen))) or "beside"
            reasons.append(f"found {wanted.name} {words} {other.name}, expected {wanted.relation}")
    return reasons


def relations(one: Detection, other: Detection) -> set[str]:
    """Where `one` lies from `other`: none, one or two of `left of`, `right of`, `above`, `below`.

    GenEval's rule: each offset of the centres is shortened by a tenth of the two sides; what is left is a direction if it is
    more than half of the distance of the centres. Worked example: centres (.25, .40) and (.75, .60), sides .4: offsets
    (-.50, -.20), shortened (-.42, -.12), distance .539: shares -.78 and -.22, so `left of` alone.
    """
    offset = (one.x - other.x, one.y - other.y)
    distance = math.hypot(*offset)
    if distance == 0:
        return set()
    across, down = (math.copysign(max(abs(d) - SLACK * (one.side + other.side), 0.0), d) / distance for d in offset)
    named = {"left of": -across, "right of": across, "above": -down, "below": down}
    return {name for name, share in named.items() if share > STEEP}


def category_scores(graded: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Share of correct images by category, with 95 % bootstrap intervals.

    Prompts are resampled and not images: the seeds of a prompt are not independent. `overall` is the mean of the
    categories, as in GenEval.

    Args:
        graded: `grade`'s table, any number of images a prompt.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Columns `category, score, low, high, prompts, images`; scores are shares in 0..1.
    """
    rows = _summary(_by_prompt(graded), resamples, seed, "score")
    counts = graded.groupby("tag").size()
    rows["images"] = [int(counts.get(name, counts.sum())) for name in rows["category"]]
    return rows


def paired_difference(graded: pd.DataFrame, reference: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Score of `graded` minus score of `reference` on the same prompts, with 95 % bootstrap intervals over prompts.

    Args:
        graded: `grade`'s table.
        reference: another one, on the same prompts.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Columns `category, difference, low, high, prompts`.

    Raises:
        DataError: the two tables do not hold the same prompts.
    """
    one, other = _by_prompt(graded), _by_prompt(reference)
    if list(one.index) != list(other.index):
        alone = sorted(set(one.index) ^ set(other.index))[0]
        raise DataError(
            f"Prompt '{alone[1]}' ({alone[0]}) is in one of the two graded tables only; grade both on the same prompts."
        )
    return _summary(one - other, resamples, seed, "difference")


def _by_prompt(graded: pd.DataFrame) -> pd.Series:
    """Mean over the seeds of each (tag, prompt)."""
    if graded.empty:
        raise DataError("The graded table is empty; grade at least one image.")
    return graded.groupby(["tag", "prompt"])["correct"].mean()


def _summary(values: pd.Series, resamples: int, seed: int, column: str) -> pd.DataFrame:
    tags = values.index.get_level_values("tag")
    each = {tag: values[tags == tag].to_numpy(dtype=float) for tag in TAGS if tag in tags}
    rows = [(tag, part.mean(), *mean_interval(part, seed=seed, resamples=resamples), len(part)) for tag, part in each.items()]
    overall = np.mean([part.mean() for part in each.values()])
    rows.append(("overall", overall, *mean_interval(*each.values(), seed=seed, resamples=resamples), len(values)))
    return pd.DataFrame(rows, columns=["category", column, "low", "high", "prompts"])


def _wrong_styles(found: list[Detection], include: Sequence[Wanted]) -> list[str]:
    reasons = []
    for wanted in include:
        best = next((one for one in found if one.name == wanted.name), found[0] if found else None)
        if best is None:
            reasons.append(f"found nothing, expected {wanted.style} style")
        elif best.style != wanted.style:
            reasons.append(f"found {best.name} in {best.style} style, expected {wanted.style}")
    return reasons


def _listed(found: list[Detection]) -> str:
    """`2 x lemon (noto), 1 x dog (flat)`."""
    return ", ".join(
        f"{count} x {name} ({style})" for (name, style), count in Counter((d.name, d.style) for d in found).items()
    )
