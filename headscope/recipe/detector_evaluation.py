"""Testing the detector of StickerEval on scenes that its training never shows."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from headscope.intervals import share_interval
from headscope.models.janus import JanusModel
from headscope.recipe.detector_data import DetectorScenes, decoded, resampled, seen_through
from headscope.recipe.images import as_bytes
from headscope.recipe.scenes import CLASSES, POSITIONS, RELATIONS, Scene, compose, describe, held_out_count, pair_held_out
from headscope.recipe.vq import encode
from headscope.stickereval.detector import Detection, StickerDetector
from headscope.stickereval.grader import relations
from headscope.storage import write_whole

IMAGES = {"single": 600, "two": 250, "counting": 250, "position": 250, "unseen single": 210, "unseen pair": 150, "other": 150}
RESAMPLED_KINDS, TIMES = ("single", "two", "counting", "position"), ("once", "twice", "three times")
RESAMPLED_IMAGES = 96  # images of each of these kinds


def held_out_scenes(book: DetectorScenes, kind: str, count: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes that training keeps away: held-out pairs and counts; singles of known drawings, placed anew.

    Args:
        kind: `single`, `two`, `counting`, `position`, `other` (concepts outside the classes), or `unseen single` and
            `unseen pair` (with drawings that training never showed).
    """
    pairs = [pair for pair in itertools.combinations(CLASSES, 2) if pair_held_out(*pair)]
    scenes = []
    for _ in range(count):
        name = str(rng.choice(list(CLASSES)))
        relation = None
        names = [name]
        if kind == "other":
            scenes.append(book.training_scene("other", rng))
            continue
        if kind == "counting":
            names = [name] * held_out_count(name)
        elif kind in ("two", "position"):
            names = [str(each) for each in rng.permutation(pairs[rng.integers(len(pairs))])]
            relation = str(rng.choice(list(RELATIONS))) if kind == "position" else None
        styles = book._styles_for(names, rng)
        if kind.startswith("unseen"):
            names, styles = ([each] for each in book.unseen[rng.integers(len(book.unseen))])
            if kind == "unseen pair":
                names.append(str(rng.choice([other for other in CLASSES if other != names[0]])))
                styles.append(str(rng.choice(book.styles[names[1]])))
        scenes.append(compose(kind, names, styles, relation, rng))
    return scenes


def wholly_right(scene: Scene, found: list[Detection]) -> dict[str, bool]:
    """Whether classes and counts are right, and also the styles (`right`), and the relation if the scene has one."""
    true = [item for item in scene.items if item.name in CLASSES]
    named = Counter(item.name for item in true) == Counter(one.name for one in found)
    right = Counter((item.name, item.style) for item in true) == Counter((one.name, one.style) for one in found)
    if right and scene.relation is not None:
        first, second = (next(one for one in found if one.name == item.name) for item in true)
        right = POSITIONS[scene.relation] in relations(first, second)
    return {"classes": named, "right": right}


def evaluate_detector(
    detector: StickerDetector, book: DetectorScenes, model: JanusModel, sizes: dict[str, int], seed: int = 1
) -> pd.DataFrame:
    """The grader's own test: share of images wholly right, as composed and after the VQ model, with Wilson intervals.

    The first `RESAMPLED_IMAGES` images of `RESAMPLED_KINDS` are also resampled, once to three times, by the model.

    Args:
        sizes: how many images of each kind of `held_out_scenes`.

    Returns:
        Columns `images_of, seen, images, classes_right, right, low, high`; shares in 0..1. Kind `scenes` is all of two,
        counting and position.
    """
    rows = []
    for kind, count in sizes.items():
        rng, chance = (np.random.default_rng([seed, zlib.crc32(kind.encode()), *more]) for more in ((), (1,)))
        for start in range(0, count, 32):
            scenes = held_out_scenes(book, kind, min(32, count - start), rng)
            pixels = book.render(scenes, rng)
            views = {
                "composed": as_bytes(pixels),
                "after the VQ model": as_bytes(seen_through(model.network.model.vqmodel, pixels)),
            }
            if kind in RESAMPLED_KINDS and start < RESAMPLED_IMAGES:
                captions = [describe(scene, chance) for scene in scenes]
                chain = resampled(model, pixels, captions, len(TIMES), chance)
                views |= {f"resampled {times}": decoded(model, tokens) for times, tokens in zip(TIMES, chain, strict=True)}
            for seen, images in views.items():
                answers = zip(scenes, detector.detect(images.permute(0, 2, 3, 1)), strict=True)
                rows += [{"kind": kind, "seen": seen, **wholly_right(scene, found)} for scene, found in answers]
    table = pd.DataFrame(rows)
    together = table[table["kind"].isin(["two", "counting", "position"])].assign(kind="scenes")
    lines = []
    for (kind, seen), part in pd.concat([table, together]).groupby(["kind", "seen"], sort=False):
        low, high = share_interval(int(part["right"].sum()), len(part))
        lines.append((kind, seen, len(part), part["classes"].mean(), part["right"].mean(), low, high))
    return pd.DataFrame(lines, columns=["images_of", "seen", "images", "classes_right", "right", "low", "high"])


def write_sample(book: DetectorScenes, model: JanusModel, path: Path, singles: int = 16, each: int = 8, seed: int = 2) -> Path:
    """A few scenes of `held_out_scenes` as image tokens int16 [n, N], for tests; the metadata says what they show."""
    rng = np.random.default_rng([seed, 8])
    kinds = {"single": singles, "two": each, "counting": each, "position": each}
    scenes = [scene for kind, count in kinds.items() for scene in held_out_scenes(book, kind, count, rng)]
    with torch.no_grad():
        tokens = encode(model.network.model.vqmodel, book.render(scenes, rng)).to(torch.int16)
    facts = [{"kind": s.kind, "relation": s.relation, "items": [astuple(item) for item in s.items]} for s in scenes]
    write_whole(path, lambda target: save_file({"tokens": tokens}, target, {"scenes": json.dumps(facts)}))
    os.chmod(path, 0o644)
    return path
