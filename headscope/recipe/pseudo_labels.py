"""Images that the model generated, as training images of the detector: an earlier detector and the prompt say what they show.

Composed images, even resampled ones, are cleaner than what a model generates, so a detector that learned from them alone takes
half-right objects for something outside its classes. Here it is shown such images (self-training with pseudo labels: D.-H.
Lee, 2013). A thing that looks more like what the prompt asked for than like all other classes together is labelled as that
class; one that looks like nothing known, and least of all like what was asked for, as `other`; an image with anything in
between is left out. The prompts are training's, never StickerEval's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.recipe.detector_data import Pool, decoded, keep_tokens, kept_tokens
from headscope.recipe.scenes import CLASSES, Item, Scene, SceneBook, describe
from headscope.runtime import generate
from headscope.stickereval.detector import StickerDetector

KINDS, SHARES = ("single", "counting", "two", "position"), (0.5, 0.3, 0.1, 0.1)
CHUNK = 48  # images generated together, and in one file
FIRST_SEED = 3_000_000
FAINT = 0.35  # least objectness of what counts as a thing
CLAIMED, BESIDE = 0.5, 0.1  # least share of the asked classes, of the classes alone; the second where another thing is claimed
DENIED, STRANGE = 0.1, 0.9  # of the asked classes at most this share, and `other` at least that
OTHER = "other"


def generated_pool(
    book: SceneBook, model: JanusModel, detector: StickerDetector, folder: Path, count: int, seed: int = 0
) -> Pool:
    """Generate `count` images of training's prompts into files of `CHUNK`, read what is there already, and label them.

    Args:
        detector: the earlier detector.

    Returns:
        The images that could be labelled, and what they show; styles are left open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: list[torch.Tensor] = []
    scenes: list[Scene] = []
    for start in range(0, count, CHUNK):
        path = folder / f"generated-{seed}-{start}.safetensors"
        if not path.exists():
            generate_images(book, model, path, min(CHUNK, count - start), seed, start)
        tokens, asked = kept_tokens(path)
        shown = decoded(model, tokens)
        rows, found = labelled(detector, shown, asked)
        images.append(shown[rows])
        scenes += found
    return Pool(torch.cat(images), scenes)


def generate_images(book: SceneBook, model: JanusModel, path: Path, count: int, seed: int, start: int) -> Path:
    """Generate images of prompts of training and keep them as tokens, with the scenes that were asked for."""
    rng = np.random.default_rng([seed, start, 11])
    scenes = [book.sample(KINDS[kind], rng) for kind in rng.choice(len(KINDS), size=count, p=SHARES)]
    prompts = [describe(scene, rng) for scene in scenes]
    everything = Policy.uniform(model.shape, window=model.shape.geometry.tokens - 1, stride=1, prefix=0)
    samples = generate(model, prompts, FIRST_SEED + start, policy=everything, batch_size=CHUNK)
    return keep_tokens(path, samples.tokens, scenes)


@torch.inference_mode()
def labelled(detector: StickerDetector, images: torch.Tensor, asked: Sequence[Scene]) -> tuple[list[int], list[Scene]]:
    """Images uint8 [n, 3, 96, 96] -> numbers of those that could be labelled, and what is in each."""
    rows, scenes = [], []
    for row, (things, scene) in enumerate(zip(detector.things(images.permute(0, 2, 3, 1), FAINT), asked, strict=True)):
        wanted = [detector.classes.index(name) for name in dict.fromkeys(item.name for item in scene.items)]
        shares = [thing.classes / thing.classes.sum() for thing in things]
        best = [wanted[int(share[wanted].argmax())] for share in shares]
        claimed = {number for number, share in zip(best, shares, strict=True) if share[number] >= CLAIMED}
        items = []
        for thing, number, share in zip(things, best, shares, strict=True):
            if share[number] >= (BESIDE if number in claimed else CLAIMED):
                name = detector.classes[number]
            elif share[wanted].sum() <= DENIED and thing.other >= STRANGE:
                name = OTHER
            else:
                break
            items.append(Item(name, "", thing.x, thing.y, thing.side))
        if items and len(items) == len(things):
            rows.append(row)
            scenes.append(Scene("generated", tuple(items[:4]), scene.background))
    return rows, scenes


def named_things(scenes: Sequence[Scene]) -> tuple[int, int]:
    """How many things of the classes and how many others the scenes hold."""
    names = [item.name in CLASSES for scene in scenes for item in scene.items]
    return sum(names), len(names) - sum(names)
