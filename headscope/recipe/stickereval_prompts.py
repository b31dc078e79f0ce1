"""What StickerEval asks for: its prompts, real images of what they ask for, and what it gives to these: no model can be
expected to score above it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from headscope.models.janus import JanusModel
from headscope.recipe.detector_data import DetectorScenes, seen_through
from headscope.recipe.images import as_bytes
from headscope.recipe.presets import STYLES
from headscope.recipe.scenes import CLASSES, POSITIONS, RELATIONS, Scene, compose, describe, held_out_count, pair_held_out
from headscope.stickereval.grader import StickerEval, category_scores
from headscope.stickereval.prompts import TAGS, GradingPrompt
from headscope.storage import write_text, write_whole

SEEN = ("composed", "after the VQ model")
PROMPTS_SAY = 0.6  # as training's did when the grading prompts were written: another share would be another row of wordings


def grading_prompts(book: DetectorScenes, per_category: int = 40, seed: int = 0) -> list[tuple[dict[str, Any], Scene]]:
    """Prompts in GenEval's shape, and a scene each that shows what is asked for. Two, counting and position ask only for what
    training's scenes never show.

    A style is said under the tag `style` alone, so that nothing is asked for that is not graded. There it is one of a drawing
    that the detector learned: it can't tell the style of others, not even of the drawing itself.
    """
    rng = np.random.default_rng([seed, 7])
    pairs = [pair for pair in itertools.combinations(CLASSES, 2) if pair_held_out(*pair)]
    drawn = iter(rng.permutation(len(pairs)))
    names = {tag: rng.permutation(list(CLASSES)) for tag in ("single", "style", "counting")}
    found = []
    for tag, number in itertools.product(TAGS, range(per_category)):
        relation = None
        if tag in ("two", "position"):
            chosen = [str(name) for name in rng.permutation(pairs[next(drawn)])]
            relation = list(RELATIONS)[number % len(RELATIONS)] if tag == "position" else None
        else:
            name = str(names[tag][number % len(CLASSES)])
            chosen = [name] * (held_out_count(name) if tag == "counting" else 1)
        there = [style for style in np.roll(STYLES, -number).tolist() if (chosen[0], style) in book.index]
        style = next(style for style in there if tag != "style" or (chosen[0], style) not in book.unseen)
        scene = compose("single" if tag == "style" else tag, chosen, [style] * len(chosen), relation, rng)
        prompt = describe(scene, rng, PROMPTS_SAY)
        while (" style" in prompt) != (tag == "style"):
            prompt = describe(scene, rng, PROMPTS_SAY)
        include: list[dict[str, Any]] = [{"class": name, "count": chosen.count(name)} for name in dict.fromkeys(chosen)]
        if tag == "style":
            include[0]["style"] = style
        if relation is not None:  # GenEval names the other thing first
            include = [include[1], {**include[0], "position": [POSITIONS[relation], 0]}]
        found.append(({"tag": tag, "include": include, "prompt": prompt}, scene))
    return found


def write_prompts(book: DetectorScenes, path: Path) -> Path:
    """Write them as JSON lines."""
    return write_text(path, "".join(json.dumps(line) + "\n" for line, _ in grading_prompts(book)))


def drawable(book: DetectorScenes, scene: Scene) -> Scene:
    """The scene with drawings that there are: a thing that was never drawn in its style has the first style that there is."""
    styles = [item.style if (item.name, item.style) in book.index else book.styles[item.name][0] for item in scene.items]
    return replace(scene, items=tuple(replace(item, style=style) for item, style in zip(scene.items, styles, strict=True)))


def write_real(book: DetectorScenes, folder: Path, seed: int = 4) -> Path:
    """Compose an image of what each grading prompt asks for, as PNG files, for `headscope evaluate --real`.

    No style is asked for in which a thing was never drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [drawable(book, scene) for _, scene in grading_prompts(book)]
    images = as_bytes(book.render(scenes, np.random.default_rng([seed, 7]))).permute(0, 2, 3, 1).numpy()
    for number, image in enumerate(images):
        write_whole(folder / f"{number:04d}.png", partial(Image.fromarray(image).save, format="PNG"))
    return folder


@torch.inference_mode()
def ceiling(
    book: DetectorScenes, model: JanusModel, grader: StickerEval, prompts: list[GradingPrompt], views: int = 8, seed: int = 6
) -> pd.DataFrame:
    """Grade `views` composed images a prompt, as they are and after the model's VQ model.

    Args:
        prompts: those that `grading_prompts` writes, in its order.

    Returns:
        Columns `seen` (one of `SEEN`), then those of `category_scores`.
    """
    rng = np.random.default_rng([seed, 9])
    scenes = [drawable(book, scene) for _, scene in grading_prompts(book)]
    graded: dict[str, list[pd.DataFrame]] = {seen: [] for seen in SEEN}
    for _ in range(views):
        for start in range(0, len(scenes), 32):
            asked = prompts[start : start + 32]
            pixels = book.render(scenes[start : start + 32], rng)
            seen = (pixels, seen_through(model.network.model.vqmodel, pixels))
            for name, images in zip(SEEN, seen, strict=True):
                table = grader.grade(as_bytes(images).permute(0, 2, 3, 1), asked)
                graded[name].append(table.assign(prompt=range(start, start + len(asked))))
    parts = [category_scores(pd.concat(tables)).assign(seen=name) for name, tables in graded.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["seen", *[name for name in table.columns if name != "seen"]]]
