"""Does StickerEval agree with a human annotator? Its verdicts on generated images that were labelled before it saw them.

The labels say what things the annotator names in each image and how many, and where they are if they are of several classes;
styles were not labelled, so tag style is left out of the agreement. Nothing of the detector is chosen by them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.intervals import share_interval
from headscope.models.fingerprint import weights_fingerprint
from headscope.models.janus import JanusModel
from headscope.stickereval.detector import Detection, StickerDetector
from headscope.stickereval.grader import judge
from headscope.stickereval.prompts import PROMPTS, TAGS, GradingPrompt, read_grading_prompts
from headscope.storage import read_json, read_text, write_whole

GRADED = tuple(tag for tag in TAGS if tag != "style")
NOTHING = "nothing"
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_CELLS = {(told, graded): f"annotator_{told}_grader_{graded}" for told in ("yes", "no") for graded in ("yes", "no")}


@dataclass(frozen=True)
class Labelled:
    """n generated images: image tokens int16 [n, N], what each was asked to show, the things the annotator names in it,
    and the centres (x, y), as shares of the image, of those of several classes."""

    tokens: torch.Tensor
    prompts: list[GradingPrompt]
    things: list[Counter[str]]
    places: list[dict[str, tuple[float, float]]]
    about: Mapping[str, str]


def pack_labelled(generated: Path, model: JanusModel, out: Path, prompts: Path = PROMPTS) -> Path:
    """Write the generated images as image tokens int16 [n, N], with line of the prompt (from 1 on) and seed, int64 [n].

    Args:
        generated: folder with `images.safetensors` and `prompts.json`.
    """
    facts = read_json(generated / "prompts.json")
    tokens = load_file(generated / "images.safetensors")["tokens"]
    lines, seeds = (torch.tensor([one[name] for one in facts["images"]]) for name in ("prompt_line", "seed"))
    about = {name: str(facts[name]) for name in ("model", "guidance", "temperature")}
    about |= {"prompts": _digest(prompts, lines.tolist()), "vq": weights_fingerprint(model.network.model.vqmodel)}
    kept = {"tokens": tokens.to(torch.int16), "prompt_line": lines, "seed": seeds}
    write_whole(out, lambda target: save_file(kept, target, about))
    os.chmod(out, 0o644)
    return out


def read_labelled(labels: Path, images: Path, prompts: Path = PROMPTS) -> Labelled:
    """Read the labels and the images they are of.

    Raises:
        DataError: a missing or broken file, other prompts than those the images were generated from, or not one label an image.
    """
    try:
        with safe_open(str(images), "pt") as file:
            tokens, lines, about = file.get_tensor("tokens"), file.get_tensor("prompt_line").tolist(), dict(file.metadata())
    except (OSError, SafetensorError, TypeError) as error:
        raise DataError(f"{images}: not a readable file of labelled images ({error}).") from None
    if about.get("prompts") != _digest(prompts, lines):
        raise DataError(f"{images}: generated from other prompts than those of {prompts}; generate and label images anew.")
    things, places = _read_things(labels)
    if len(things) != len(tokens):
        raise DataError(f"{labels}: labels of {len(things)} images, {images} holds {len(tokens)}.")
    asked = read_grading_prompts(prompts)
    return Labelled(tokens, [asked[line - 1] for line in lines], things, places, about)


def _read_things(labels: Path) -> tuple[list[Counter[str]], list[dict[str, tuple[float, float]]]]:
    things, places = [], []
    try:
        for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines()):
            given = json.loads(line)
            if given["image"] != number:
                raise DataError(f"{labels}: line {number + 1} is of image {given['image']}; expected {number}.")
            things.append(Counter({str(name): int(count) for name, count in given["things"].items()}))
            places.append({str(name): (float(x), float(y)) for name, (x, y) in given.get("places", {}).items()})
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f'{labels}: not lines of {{"image": n, "things": {{class: count}}}} ({error}).') from None
    return things, places


def decode_labelled(labelled: Labelled, model: JanusModel) -> torch.Tensor:
    """The images, uint8 [n, 96, 96, 3].

    Raises:
        DataError: the model's VQ model is not the one that decoded them, so that the annotator saw something else.
    """
    if labelled.about.get("vq") != weights_fingerprint(model.network.model.vqmodel):
        raise DataError(f"The VQ model of {model.name} is not the one of the labelled images; generate and label anew.")
    return model.to_images(labelled.tokens)


def annotated_detections(things: Counter[str], places: Mapping[str, tuple[float, float]]) -> list[Detection]:
    """An image's labels as detections, so that the grader's own rules judge them.

    All lie in the middle, in no relation to each other, unless `places` says more.
    """
    return [
        Detection(name, "", 1.0, *places.get(name, (0.5, 0.5)), 0.4) for name, count in things.items() for _ in range(count)
    ]


def verdicts(labelled: Labelled, found: Sequence[list[Detection]]) -> pd.DataFrame:
    """One row an image of the tags but style: `image, tag, annotator, grader`, the last two `yes` or `no`."""
    rows = []
    rows_of = zip(labelled.prompts, labelled.things, labelled.places, found, strict=True)
    for number, (prompt, things, places, seen) in enumerate(rows_of):
        if prompt.tag in GRADED:
            told = [("no" if judge(each, prompt) else "yes") for each in (annotated_detections(things, places), seen)]
            rows.append((number, prompt.tag, *told))
    return pd.DataFrame(rows, columns=["image", "tag", "annotator", "grader"])


def agreement(judged: pd.DataFrame) -> pd.DataFrame:
    """Share of equal verdicts by tag, with Wilson intervals of 95 %, and the four counts; the last row is `overall`."""
    rows = []
    for tag in (*GRADED, "overall"):
        part = judged if tag == "overall" else judged[judged["tag"] == tag]
        if part.empty:
            continue
        counts = Counter(zip(part["annotator"], part["grader"], strict=True))
        equal = counts["yes", "yes"] + counts["no", "no"]
        low, high = share_interval(equal, len(part))
        cells = {name: counts[cell] for cell, name in _CELLS.items()}
        rows.append({"tag": tag, "images": len(part), "agreement": equal / len(part), "low": low, "high": high, **cells})
    return pd.DataFrame(rows)


def confusion(things: Sequence[Counter[str]], found: Sequence[list[Detection]]) -> pd.DataFrame:
    """How often the annotator's things are the grader's: `annotator, grader, count`, most frequent first.

    Worked example: annotator {lemon: 4}, grader {lemon: 3, bell: 1}: lemon is lemon three times and a bell once. What is left
    over is paired like that if it is of one class on either side; else it is against `nothing`.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for annotator, detections in zip(things, found, strict=True):
        grader = Counter(one.name for one in detections)
        for name, count in (annotator & grader).items():
            counts[name, name] += count
        missed, more = annotator - grader, grader - annotator
        if len(missed) == len(more) == 1:
            pair, both = (*missed, *more), min(missed.total(), more.total())
            counts[pair[0], pair[1]] += both
            missed.subtract({pair[0]: both})
            more.subtract({pair[1]: both})
        for name, count in (+missed).items():
            counts[name, NOTHING] += count
        for name, count in (+more).items():
            counts[NOTHING, name] += count
    rows = sorted(((*pair, count) for pair, count in counts.items()), key=lambda row: (-row[2], row))
    return pd.DataFrame(rows, columns=["annotator", "grader", "count"])


def by_threshold(labelled: Labelled, images: torch.Tensor, detector: StickerDetector) -> pd.DataFrame:
    """Overall agreement with other least scores than the detector's: `threshold, agreement`. To know, not to choose by."""
    own = detector.threshold
    rows = []
    for threshold in THRESHOLDS:
        detector.threshold = threshold
        judged = verdicts(labelled, detector.detect(images))
        rows.append((threshold, float(np.mean(judged["annotator"] == judged["grader"]))))
    detector.threshold = own
    return pd.DataFrame(rows, columns=["threshold", "agreement"])


def _digest(prompts: Path, lines: Sequence[int]) -> str:
    """Of those lines of the prompt file (from 1 on) that images were generated from; the others may change."""
    given = read_text(prompts, "prompt file").splitlines()
    asked = {str(line): given[line - 1] if line <= len(given) else None for line in sorted(set(lines))}
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
