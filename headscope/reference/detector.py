"""Training the detector of StickerEval on composed scenes, half of them seen through the VQ model.

What StickerEval asks for stays unseen: held-out pairs and counts, and the drawings that `Stickers.held_out` marks.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import zlib
from collections import Counter
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers.models.janus.modeling_janus import JanusVQVAE

from headscope.evaluation.detector import Detection, DetectorNetwork, StickerDetector, channels_last
from headscope.evaluation.grader import relations
from headscope.evaluation.prompts import TAGS
from headscope.models import load_model
from headscope.reference import bf16
from headscope.reference.journal import Journal
from headscope.reference.muon import MuonAdam
from headscope.reference.pictures import Stickers
from headscope.reference.presets import BACKGROUNDS, STYLES
from headscope.reference.scenes import (
    CLASSES,
    RELATIONS,
    Item,
    Scene,
    SceneBook,
    compose,
    describe,
    held_out_count,
    pair_held_out,
    places,
)
from headscope.reference.vq import encode
from headscope.storage import write_text, write_whole

BATCH = 64  # a quarter anew through the VQ model, the same mirrored, and half as composed
RATE, ADAM_RATE = 0.02, 2e-3
WARM_STEPS, DECAY_FROM = 40, 0.3
KINDS = ("single", "two", "counting", "position", "mixed", "other", "empty")
SHARES = (0.30, 0.10, 0.20, 0.08, 0.22, 0.09, 0.01)
GARBLED = 0.03  # share of pictures whose tiles are shuffled, in which nothing is to be found
_SAID = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
EXAM = {"single": 600, "two": 250, "counting": 250, "position": 250, "unseen single": 210, "unseen pair": 150, "other": 150}
_COLOURS = {"green", "blue", "yellow", "orange", "purple", "black", "white", "brown", "pink", "grey"}
_SHARED = {"ball", "tree"}  # words of a class that do not make another concept look like it


def looks_like_a_class(concept: str) -> bool:
    """Whether a concept outside the classes may show one of them (`heart suit`, `old key`), so that it can't teach `other`."""
    nouns = {name.split()[-1] for name in CLASSES} - _SHARED
    words = {word.removesuffix("s") for word in concept.split()} | set(concept.split())
    return bool(words & nouns) and concept.split()[0] not in _COLOURS


class LessonBook(SceneBook):
    """Scenes that a detector learns from: training's kinds, several classes at once, and concepts outside the classes.

    Attributes:
        unseen: (class, style) of the drawings kept for the test. others: (concept, style) of what is no class.
    """

    def __init__(self, stickers: Stickers) -> None:
        super().__init__(stickers)
        self.unseen = [pair for pair, row in self.index.items() if stickers.held_out[row]]
        self.styles = {name: [s for s in styles if (name, s) not in self.unseen] for name, styles in self.styles.items()}
        concepts = set(CLASSES) | set(CLASSES.values())
        found = {
            pair: row
            for row, pair in enumerate(zip(stickers.concepts, stickers.styles, strict=True))
            if pair[0] not in concepts and not stickers.held_out[row] and not looks_like_a_class(pair[0])
        }
        self.others = list(found)
        self.index |= found

    def _styles_for(self, names: list[str], rng: np.random.Generator) -> list[str]:
        """One style for all where there is one, else any; never an unseen drawing."""
        shared = [style for style in self.styles[names[0]] if all(style in self.styles[name] for name in names)]
        if shared:
            return [shared[rng.integers(len(shared))]] * len(names)
        return [str(rng.choice(self.styles[name])) for name in names]

    def lesson(self, kind: str, rng: np.random.Generator) -> Scene:
        """A scene of one of `KINDS`; no held-out combination."""
        if kind in ("single", "two", "counting", "position"):
            scene = self.sample(kind, rng)
            return (
                replace(scene, items=tuple(self._any_style(item, rng) for item in scene.items)) if rng.random() < 0.3 else scene
            )
        background = str(rng.choice(list(BACKGROUNDS)))
        if kind == "empty":
            return Scene(kind, (), background)
        count = int(rng.integers(1 if kind == "other" else 2, 5))
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            name = str(rng.choice(list(CLASSES)))
            if kind == "other" or rng.random() < 0.15:
                pairs.append(self.others[rng.integers(len(self.others))])
            elif not any(name == seen or pair_held_out(name, seen) for seen, _ in pairs):
                pairs.append((name, str(rng.choice(self.styles[name]))))
        low, high = {1: (0.62, 1.0), 2: (0.34, 0.50)}.get(count, (0.30, 0.46))
        sides = rng.uniform(low, high, count)
        centres = places("mixed", count, None, rng)[rng.permutation(count)]
        shift = rng.uniform(-0.5, 0.5, 2) * (1.02 - sides[0]) if count == 1 else rng.uniform(-0.03, 0.03, 2)
        items = (
            Item(name, style, float(x), float(y), float(side))
            for (name, style), (x, y), side in zip(pairs, centres + shift, sides, strict=True)
        )
        return Scene(kind, tuple(items), background)

    def _any_style(self, item: Item, rng: np.random.Generator) -> Item:
        return replace(item, style=str(rng.choice(self.styles[item.name])))


def mirrored(scene: Scene) -> Scene:
    """The scene as a mirror shows it."""
    return replace(scene, items=tuple(replace(item, x=1 - item.x) for item in scene.items))


@torch.no_grad()
def seen_through(vq: JanusVQVAE, pixels: torch.Tensor, rng: np.random.Generator | None = None) -> torch.Tensor:
    """Encode and decode pictures [b, 3, H, W] in -1..1; with `rng`, some codes are replaced as a model might err.

    A code gives way to one of its eight nearest (up to a quarter of the codes), or to that of a neighbouring cell (up to 6 %).
    """
    tokens = encode(vq, pixels)
    if rng is not None:
        codes = functional.normalize(vq.quantize.embedding.weight.float(), dim=-1)
        near = (codes @ codes.T).topk(9, -1).indices[:, 1:]
        chance = rng.uniform(0, 1, (len(tokens), 1)) * (rng.random((len(tokens), 1)) < 0.6)
        swapped = torch.from_numpy(rng.random(tokens.shape) < 0.25 * chance)
        picks = torch.from_numpy(rng.integers(near.shape[1], size=tokens.shape))
        tokens = torch.where(swapped, near[tokens, picks], tokens)
        moved = torch.from_numpy(rng.random(tokens.shape) < 0.06 * chance)
        tokens = torch.where(moved, tokens.roll(int(rng.choice([-1, 1, -24, 24])), 1), tokens)
    return vq.decode(cast(torch.LongTensor, tokens)).float().clamp(-1, 1)


def _warp(pixels: torch.Tensor, rng: np.random.Generator, reach: float = 0.13) -> torch.Tensor:
    """Bend pictures smoothly, by up to `reach` of half a side, as a model misdraws shapes."""
    count, _, height, width = pixels.shape
    bend = torch.from_numpy(rng.uniform(-1, 1, (count, 2, 5, 5)) * rng.uniform(0, reach, (count, 1, 1, 1))).float()
    bend = functional.interpolate(bend, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = functional.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, height, width], align_corners=False)
    return functional.grid_sample(pixels, still + bend, padding_mode="border", align_corners=False)


def _worn(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Slight blur, noise and change of light, each in some of the pictures."""
    some = [torch.from_numpy(rng.uniform(0, 1, (len(pixels), 1, 1, 1)) * (rng.random((len(pixels), 1, 1, 1)) < 0.4)).float()
            for _ in range(4)]  # fmt: skip
    blurred = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = pixels + some[0] * (blurred - pixels)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    pixels = pixels + 0.08 * some[1] * noise
    return (pixels * (1 - 0.1 * some[2]) + 0.1 * (some[3] - some[2])).clamp(-1, 1)


def _shuffled(pixels: torch.Tensor, rng: np.random.Generator, tile: int = 16) -> torch.Tensor:
    """One picture [3, H, W] with its tiles in another order."""
    side = pixels.shape[-1] // tile
    tiles = (
        pixels.view(3, side, tile, side, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)[torch.from_numpy(rng.permutation(side**2))]
    )
    return tiles.view(side, side, 3, tile, tile).permute(2, 0, 3, 1, 4).reshape(pixels.shape)


def lessons(book: LessonBook, vq: JanusVQVAE, rng: np.random.Generator, fast: bool) -> tuple[torch.Tensor, list[Scene]]:
    """One batch: pictures [b, 3, H, W] in -1..1 and what is in them."""
    kinds = rng.choice(len(KINDS), size=BATCH - BATCH // 4, p=SHARES)
    scenes = [book.lesson(KINDS[kind], rng) for kind in kinds]
    pixels = book.render(scenes, rng, tilt=8.0)
    bent = torch.from_numpy(rng.permutation(len(scenes))[: len(scenes) // 2])
    pixels[bent] = _warp(pixels[bent], rng)
    for row in np.flatnonzero(rng.random(len(scenes)) < GARBLED):
        pixels[row] = _shuffled(pixels[row], rng)
        scenes[row] = Scene("empty", (), scenes[row].background)
    part = BATCH // 4
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        pixels[:part] = seen_through(vq, pixels[:part].contiguous(memory_format=torch.channels_last), rng)
    pixels = torch.cat([pixels, pixels[:part].flip(-1)])
    return _worn(pixels, rng), scenes + [mirrored(scene) for scene in scenes[:part]]


@dataclass(frozen=True)
class Targets:
    """Up to four objects of b pictures: names and styles int64 [b, 4] (-1: none), boxes float32 [b, 4, 3] (x, y, side)."""

    names: torch.Tensor
    styles: torch.Tensor
    boxes: torch.Tensor


def targets(scenes: list[Scene]) -> Targets:
    """Concepts outside the classes get the number after the last class."""
    classes = list(CLASSES)
    names, styles = (torch.full((len(scenes), 4), -1) for _ in range(2))
    boxes = torch.full((len(scenes), 4, 3), -9.0)
    for row, scene in enumerate(scenes):
        for slot, item in enumerate(scene.items):
            names[row, slot] = classes.index(item.name) if item.name in CLASSES else len(classes)
            styles[row, slot] = STYLES.index(item.style)
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
        "styles": functional.cross_entropy(styles[b, :, i, j], true.styles[b, whose]),
        "box": functional.l1_loss(box[b, :, i, j], aim) * 2,
    }


def train_detector(book: LessonBook, vq: JanusVQVAE, folder: Path, count: int, seed: int = 0, minutes: float = 3.0) -> Path:
    """Train on `count` pictures, log to `detector.csv`, checkpoint every few minutes; a stopped run goes on where it was."""
    torch.manual_seed(seed)
    fast = bf16.has_units("cpu")
    network = DetectorNetwork(len(CLASSES), len(STYLES))
    network.state_dict()["head.bias"][0] = -3.0  # objects are rare
    network, vq = channels_last(network.train()), channels_last(vq)
    optimiser = MuonAdam(network, RATE, ADAM_RATE)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    step, steps = _resume(network, optimiser, checkpoint), -(-count // BATCH)
    journal = Journal(folder / "detector.csv")
    started = saved = time.monotonic()
    while step < steps:
        rng = np.random.default_rng([seed, step, 5])
        pixels, scenes = lessons(book, vq, rng, fast)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            maps = network(pixels.contiguous(memory_format=torch.channels_last))
        losses = detector_loss(network, maps, targets(scenes))
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimiser.parameters, 5.0)
        factor = min(1.0, (step + 1) / WARM_STEPS) * min(1.0, (1 - step / steps) / (1 - DECAY_FROM))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            optimiser.step(factor)
        network.zero_grad(set_to_none=True)
        step += 1
        if step % 25 == 0 or step == steps:
            parts = {name: value.item() for name, value in losses.items()}
            journal.write(step=step, pictures=step * BATCH, loss=loss.item(), **parts, seconds=time.monotonic() - started)
        if time.monotonic() - saved > 60 * minutes or step == steps:
            saved = time.monotonic()
            _save(network, optimiser, step, checkpoint)
    return checkpoint


def _save(network: DetectorNetwork, optimiser: MuonAdam, step: int, path: Path) -> None:
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    state |= {f"optimiser.{name}": value.contiguous() for name, value in optimiser.state.items()}
    write_whole(path, lambda target: save_file(state, target, {"step": str(step)}))


def _resume(network: DetectorNetwork, optimiser: MuonAdam, path: Path) -> int:
    if not path.exists():
        return 0
    state = load_file(path)
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith("optimiser.")})
    for name, value in optimiser.state.items():
        value.copy_(state[f"optimiser.{name}"])
    with safe_open(str(path), "pt") as file:
        optimiser.step_count = int(file.metadata()["step"])
    return optimiser.step_count


def trained(checkpoint: Path, threshold: float = 0.4) -> StickerDetector:
    """The detector as it will be shipped: convolutions rounded to bf16."""
    state = {name: value for name, value in load_file(checkpoint).items() if not name.startswith("optimiser.")}
    network = DetectorNetwork(len(CLASSES), len(STYLES))
    network.load_state_dict({n: v.bfloat16().float() if v.ndim == 4 else v for n, v in state.items()})
    return StickerDetector(network, list(CLASSES), list(STYLES), threshold)


def ship(detector: StickerDetector, path: Path) -> Path:
    """Write what `StickerDetector.load` reads."""
    state = {n: (v.bfloat16() if v.ndim == 4 else v).contiguous() for n, v in detector.network.state_dict().items()}
    about = {"classes": detector.classes, "styles": detector.styles, "threshold": detector.threshold}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    write_whole(path, lambda target: save_file({n: v for n, v in state.items() if v.ndim}, target, metadata))
    os.chmod(path, 0o644)
    return path


def grading_prompts(book: SceneBook, per_category: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts in GenEval's shape. Two, counting and position ask only for what training's scenes never show.

    A style is said under the tag `style` alone, so that nothing is asked for that is not graded.
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
        style = next(style for style in np.roll(STYLES, -number).tolist() if (chosen[0], style) in book.index)
        scene = compose("single" if tag == "style" else tag, chosen, [style] * len(chosen), relation, rng)
        prompt = describe(scene, rng)
        while (" style" in prompt) != (tag == "style"):
            prompt = describe(scene, rng)
        include: list[dict[str, Any]] = [{"class": name, "count": chosen.count(name)} for name in dict.fromkeys(chosen)]
        if tag == "style":
            include[0]["style"] = style
        if relation is not None:  # GenEval names the other thing first
            include = [include[1], {**include[0], "position": [_SAID[relation], 0]}]
        found.append({"tag": tag, "include": include, "prompt": prompt})
    return found


def write_prompts(book: SceneBook, path: Path) -> Path:
    """Write them as JSON lines."""
    return write_text(path, "".join(json.dumps(line) + "\n" for line in grading_prompts(book)))


def vq_of(name: str) -> JanusVQVAE:
    """The VQ model of a bundled model or a folder, frozen."""
    network: Any = load_model(name)
    return network.network.model.vqmodel.requires_grad_(False)


def exam(book: LessonBook, kind: str, count: int, rng: np.random.Generator) -> list[Scene]:
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
            scenes.append(book.lesson("other", rng))
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
        right = _SAID[scene.relation] in relations(first, second)
    return {"classes": named, "right": right}


def examine(detector: StickerDetector, book: LessonBook, vq: JanusVQVAE, sizes: dict[str, int], seed: int = 1) -> pd.DataFrame:
    """The grader's own test: share of pictures wholly right, as composed and after the VQ model, with Wilson intervals.

    Args:
        sizes: how many pictures of each kind of `exam`.

    Returns:
        Columns `pictures_of, seen, pictures, classes_right, right, low, high`; shares in 0..1. Kind `scenes` is all of two,
        counting and position.
    """
    rows = []
    for kind, count in sizes.items():
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        for start in range(0, count, 32):
            scenes = exam(book, kind, min(32, count - start), rng)
            pixels = book.render(scenes, rng)
            for seen, shown in (("composed", pixels), ("after the VQ model", seen_through(vq, pixels))):
                pictures = ((shown + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
                answers = zip(scenes, detector.detect(pictures), strict=True)
                rows += [{"kind": kind, "seen": seen, **wholly_right(scene, found)} for scene, found in answers]
    table = pd.DataFrame(rows)
    together = table[table["kind"].isin(["two", "counting", "position"])].assign(kind="scenes")
    lines = []
    for (kind, seen), part in pd.concat([table, together]).groupby(["kind", "seen"], sort=False):
        low, high = wilson(int(part["right"].sum()), len(part))
        lines.append((kind, seen, len(part), part["classes"].mean(), part["right"].mean(), low, high))
    return pd.DataFrame(lines, columns=["pictures_of", "seen", "pictures", "classes_right", "right", "low", "high"])


def write_sample(book: LessonBook, vq: JanusVQVAE, path: Path, singles: int = 16, each: int = 8, seed: int = 2) -> Path:
    """A few scenes of `exam` as image tokens int16 [n, N], for the project's own tests; what they show is in the metadata."""
    rng = np.random.default_rng([seed, 8])
    kinds = {"single": singles, "two": each, "counting": each, "position": each}
    scenes = [scene for kind, count in kinds.items() for scene in exam(book, kind, count, rng)]
    with torch.no_grad():
        tokens = encode(vq, book.render(scenes, rng)).to(torch.int16)
    facts = [{"kind": s.kind, "relation": s.relation, "items": [astuple(item) for item in s.items]} for s in scenes]
    write_whole(path, lambda target: save_file({"tokens": tokens}, target, {"scenes": json.dumps(facts)}))
    os.chmod(path, 0o644)
    return path


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927)."""
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def best_threshold(detector: StickerDetector, book: LessonBook, vq: JanusVQVAE, count: int = 480, seed: int = 3) -> float:
    """The least score of a detection: the middle of those with which nearly most of training's own scenes are wholly right.

    A third of the scenes as composed, a third bent, a third bent and after the VQ model with codes replaced. "Nearly": within
    .01 of the best, since shares are flat from .2 to .5 and fall steeply from .6 on.
    """
    rng = np.random.default_rng([seed, 6])
    scenes = [book.lesson(KINDS[kind], rng) for kind in rng.choice(len(KINDS), size=count, p=SHARES)]
    pixels = book.render(scenes, rng)
    third = count // 3
    pixels[third:] = _warp(pixels[third:], rng)
    pixels[2 * third :] = seen_through(vq, pixels[2 * third :], rng)
    pictures = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    shares = {}
    for threshold in np.arange(0.2, 0.85, 0.05).round(2).tolist():
        detector.threshold = threshold
        answers = zip(scenes, detector.detect(pictures), strict=True)
        shares[threshold] = sum(wholly_right(scene, found)["right"] for scene, found in answers) / count
    good = [threshold for threshold, share in shares.items() if share >= max(shares.values()) - 0.01]
    return good[len(good) // 2]
