"""Training the detector of StickerEval on the images of `detector_data.py`.

The shipped weights learned in three runs: from 51,200 images none of which was resampled (`--resampled 0`; half of them, not
a third, came through the VQ model at that time); then (`--warm-start`) from 64,000 of which a third were; then from 40,000, a
sixth of them resampled and a sixth generated (`--generated 480`) by today's model. What was resampled came from its earlier
weights.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from headscope.models.janus import JanusModel
from headscope.recipe import bf16, checkpoint
from headscope.recipe.csv_log import Journal
from headscope.recipe.detector_data import BATCH, DetectorScenes, Pool, training_scenes
from headscope.recipe.muon import MuonAdam
from headscope.recipe.presets import STYLES
from headscope.recipe.scenes import CLASSES, Scene
from headscope.stickereval.detector import DetectorNetwork, StickerDetector, channels_last
from headscope.storage import write_whole

RATE, ADAM_RATE = 0.02, 2e-3
WARM_STEPS, DECAY_FROM = 40, 0.3
# Chosen on the first 160 labelled images (of older weights), on which nothing is reported any more: the least score, and how
# many nats `other` loses, since what is graded is nearly always meant to be of the classes, and in training much is not.
THRESHOLD, RARE = 0.6, 3.0
WARM_RATE = 0.5  # share of the rates for a run that goes on from a trained detector


@dataclass(frozen=True)
class Targets:
    """Up to four objects of b images: names and styles int64 [b, 4] (-1: none), boxes float32 [b, 4, 3] (x, y, side)."""

    names: torch.Tensor
    styles: torch.Tensor
    boxes: torch.Tensor


def targets(scenes: list[Scene]) -> Targets:
    """Concepts outside the classes get the number after the last class; a style that nobody knows is -1."""
    classes = list(CLASSES)
    names, styles = (torch.full((len(scenes), 4), -1) for _ in range(2))
    boxes = torch.full((len(scenes), 4, 3), -9.0)
    for row, scene in enumerate(scenes):
        for slot, item in enumerate(scene.items):
            names[row, slot] = classes.index(item.name) if item.name in CLASSES else len(classes)
            styles[row, slot] = STYLES.index(item.style) if item.style in STYLES else -1
            boxes[row, slot] = torch.tensor([item.x, item.y, item.side])
    return Targets(names, styles, boxes)


def detector_loss(network: DetectorNetwork, maps: torch.Tensor, true: Targets) -> dict[str, torch.Tensor]:
    """Penalty-reduced focal loss of the heatmap (CenterNet), cross entropies and absolute errors near the centres."""
    heat, box, names, styles = network.split(maps)
    rows, cols = heat.shape[1:]
    middle = torch.stack(torch.meshgrid(torch.arange(cols), torch.arange(rows), indexing="xy"), -1) + 0.5  # [h, w, (x, y)]
    centre = true.boxes[:, :, :2] * torch.tensor([cols, rows])
    gap = centre[:, :, None, None] - middle  # [b, 4, h, w, 2]
    distance = gap.square().sum(-1).sqrt()
    side = true.boxes[:, :, 2].clamp_min(0.05)[:, :, None, None]
    blob = torch.exp(-(distance.square()) / (2 * (0.3 + 0.9 * side).square())).amax(1)
    is_centre = (gap.abs() <= 0.5).all(-1).any(1)
    chance = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = (1 - chance).square() * chance.log()
    miss = (1 - blob) ** 4 * chance.square() * (1 - chance).log()
    objects = (true.names >= 0).sum().clamp_min(1)
    nearest, owner = distance.min(1)  # [b, h, w]
    reach = side.expand_as(distance).gather(1, owner[:, None])[:, 0]
    b, i, j = (nearest < (1.4 * reach).clamp_min(1.0)).nonzero(as_tuple=True)
    whose = owner[b, i, j]
    aim = torch.cat([gap[b, whose, i, j], true.boxes[b, whose, 2:].log()], 1)
    return {
        "heat": -torch.where(is_centre, hit, miss).sum() / objects,
        "names": functional.cross_entropy(names[b, :, i, j], true.names[b, whose]),
        "styles": functional.cross_entropy(styles[b, :, i, j], true.styles[b, whose], ignore_index=-1),
        "box": functional.l1_loss(box[b, :, i, j], aim) * 2,
    }


def train_detector(
    book: DetectorScenes,
    model: JanusModel,
    pools: Sequence[Pool],
    folder: Path,
    count: int,
    seed: int = 0,
    warm_start: Path | None = None,
    minutes: float = 3.0,
) -> Path:
    """Train on `count` images, log to `detector.csv`, checkpoint every few minutes; a stopped run goes on where it was.

    Args:
        model: whose VQ model a third of the images pass through. pools: resampled and generated images, a third of all.
        warm_start: detector file to go on from.
    """
    torch.manual_seed(seed)
    fast = bf16.has_units("cpu")
    network = DetectorNetwork(len(CLASSES), len(STYLES))
    network.state_dict()["head.bias"][0] = -3.0  # objects are rare
    if warm_start is not None:
        network.load_state_dict(StickerDetector.load(warm_start).network.state_dict())
        network.state_dict()["head.bias"][4 + len(CLASSES)] += RARE
    network, vq = channels_last(network.train()), channels_last(model.network.model.vqmodel)
    optimiser = MuonAdam(network, RATE, ADAM_RATE)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.safetensors"
    step, steps = int(checkpoint.resume(network, optimiser, path).get("step", 0)), -(-count // BATCH)
    journal = Journal(folder / "detector.csv")
    started = saved = time.monotonic()
    while step < steps:
        rng = np.random.default_rng([seed, step, 5])
        pixels, scenes = training_scenes(book, vq, pools, rng, fast)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            maps = network(pixels.contiguous(memory_format=torch.channels_last))
        losses = detector_loss(network, maps, targets(scenes))
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimiser.parameters, 5.0)
        factor = min(1.0, (step + 1) / WARM_STEPS) * min(1.0, (1 - step / steps) / (1 - DECAY_FROM))
        factor *= 1.0 if warm_start is None else WARM_RATE
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            optimiser.step(factor)
        network.zero_grad(set_to_none=True)
        step += 1
        if step % 25 == 0 or step == steps:
            parts = {name: value.item() for name, value in losses.items()}
            journal.write(step=step, images=step * BATCH, loss=loss.item(), **parts, seconds=time.monotonic() - started)
        if time.monotonic() - saved > 60 * minutes or step == steps:
            saved = time.monotonic()
            checkpoint.save(network, optimiser, path, {"step": str(step)})
    return path


def trained(path: Path, threshold: float = THRESHOLD) -> StickerDetector:
    """The detector as it will be shipped: convolutions rounded to bf16, `other` rarer than in training."""
    state = {name: value for name, value in load_file(path).items() if not name.startswith("optimiser.")}
    network = DetectorNetwork(len(CLASSES), len(STYLES))
    network.load_state_dict({n: v.bfloat16().float() if v.ndim == 4 else v for n, v in state.items()})
    network.state_dict()["head.bias"][4 + len(CLASSES)] -= RARE
    return StickerDetector(network, list(CLASSES), list(STYLES), threshold)


def ship(detector: StickerDetector, path: Path) -> Path:
    """Write what `StickerDetector.load` reads."""
    state = {n: (v.bfloat16() if v.ndim == 4 else v).contiguous() for n, v in detector.network.state_dict().items()}
    about = {"classes": detector.classes, "styles": detector.styles, "threshold": detector.threshold}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    write_whole(path, lambda target: save_file({n: v for n, v in state.items() if v.ndim}, target, metadata))
    os.chmod(path, 0o644)
    return path
