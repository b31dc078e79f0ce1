"""What the detector of StickerEval learns from: composed scenes, some seen through the VQ model, some resampled by the model.

What StickerEval asks for stays unseen: held-out pairs and counts, and the drawings that `Stickers.held_out` marks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from transformers.models.janus.modeling_janus import JanusVQVAE

from headscope.models.janus import JanusModel
from headscope.recipe import bf16
from headscope.recipe.images import Stickers
from headscope.recipe.presets import BACKGROUNDS
from headscope.recipe.scenes import CLASSES, Item, Scene, SceneBook, describe, pair_held_out, places
from headscope.recipe.vq import encode
from headscope.storage import write_whole

BATCH = 64  # a third as composed, a third through the VQ model (half of it mirrored ones of the other half), a third of pools
KINDS = ("single", "two", "counting", "position", "mixed", "other", "empty")
SHARES = (0.30, 0.10, 0.20, 0.08, 0.22, 0.09, 0.01)
GARBLED = 0.03  # share of images whose tiles are shuffled, in which nothing is to be found
DEPTHS = (0.3, 0.5, 0.2)  # share of the scenes that are resampled once, twice, three times; each time is kept
CHUNK = 400  # scenes in one file of resampled ones
_COLOURS = {"green", "blue", "yellow", "orange", "purple", "black", "white", "brown", "pink", "grey"}
_SHARED = {"ball", "tree"}  # words of a class that do not make another concept look like it


def looks_like_a_class(concept: str) -> bool:
    """Whether a concept outside the classes may show one of them (`heart suit`, `old key`), so that it can't teach `other`."""
    nouns = {name.split()[-1] for name in CLASSES} - _SHARED
    words = {word.removesuffix("s") for word in concept.split()} | set(concept.split())
    return bool(words & nouns) and concept.split()[0] not in _COLOURS


class DetectorScenes(SceneBook):
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

    def training_scene(self, kind: str, rng: np.random.Generator) -> Scene:
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
    """Encode and decode images [b, 3, H, W] in -1..1; with `rng`, some codes are replaced as a model might err.

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


def warped(pixels: torch.Tensor, rng: np.random.Generator, reach: float = 0.13) -> torch.Tensor:
    """Warp images smoothly, by up to `reach` of half a side, as a model gets shapes wrong."""
    count, _, height, width = pixels.shape
    shift = torch.from_numpy(rng.uniform(-1, 1, (count, 2, 5, 5)) * rng.uniform(0, reach, (count, 1, 1, 1))).float()
    shift = functional.interpolate(shift, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = functional.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, height, width], align_corners=False)
    return functional.grid_sample(pixels, still + shift, padding_mode="border", align_corners=False)


def worn(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Slight blur, noise and change of light, each in some of the images."""
    some = [torch.from_numpy(rng.uniform(0, 1, (len(pixels), 1, 1, 1)) * (rng.random((len(pixels), 1, 1, 1)) < 0.4)).float()
            for _ in range(4)]  # fmt: skip
    blurred = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = pixels + some[0] * (blurred - pixels)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    pixels = pixels + 0.08 * some[1] * noise
    return (pixels * (1 - 0.1 * some[2]) + 0.1 * (some[3] - some[2])).clamp(-1, 1)


def shuffled(pixels: torch.Tensor, rng: np.random.Generator, tile: int = 16) -> torch.Tensor:
    """One image [3, H, W] with its tiles in another order."""
    side = pixels.shape[-1] // tile
    tiles = (
        pixels.view(3, side, tile, side, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)[torch.from_numpy(rng.permutation(side**2))]
    )
    return tiles.view(side, side, 3, tile, tile).permute(2, 0, 3, 1, 4).reshape(pixels.shape)


@torch.inference_mode()
def resample(model: JanusModel, tokens: torch.Tensor, captions: Sequence[str], rng: np.random.Generator) -> torch.Tensor:
    """Tokens int64 [b, N], each sampled anew from what the model expects after the caption and the given tokens before it.

    Guidance and temperature are those of generation. The layout stays, the looks get the model's own mistakes, for one pass of
    the transformer where generation takes N. With an empty caption the model is told nothing.
    """
    prefix = model.tokenize([caption or "sticker" for caption in captions])
    told = torch.tensor([bool(caption) for caption in captions])[:, None]
    ids = torch.cat([torch.where(told, prefix.ids, prefix.unconditional_ids), prefix.unconditional_ids])
    mask = functional.pad(torch.cat([prefix.mask, prefix.unconditional_mask]), (0, tokens.shape[1] - 1), value=1)
    embeds = torch.cat([model.embed_prefix(ids), model.embed_tokens(tokens[:, :-1]).repeat(2, 1, 1)], 1)
    hidden = model.forward(embeds, mask)
    conditional, unconditional = model.logits(hidden[:, ids.shape[1] - 1 :]).float().chunk(2)
    logits = torch.lerp(unconditional, conditional, model.guidance) / model.temperature
    noise = torch.empty_like(logits).exponential_(generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    return (logits - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()).argmax(-1)


@torch.no_grad()
def resampled(
    model: JanusModel, pixels: torch.Tensor, captions: Sequence[str], depth: int, rng: np.random.Generator, batch: int = 16
) -> list[torch.Tensor]:
    """Image tokens int64 [b, N] of images [b, 3, H, W] in -1..1 after being resampled once, twice, ... `depth` times."""
    order = sorted(range(len(captions)), key=lambda row: len(model.tokenizer(captions[row])["input_ids"]))  # little padding
    chains: list[list[torch.Tensor]] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16.has_units("cpu")):
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens = encode(model.network.model.vqmodel, pixels[rows].contiguous(memory_format=torch.channels_last))
            chains.append([])
            for _ in range(depth):
                tokens = resample(model, tokens, [captions[row] for row in rows], rng)
                chains[-1].append(tokens)
    back = torch.tensor(order).argsort()
    return [torch.cat(each)[back] for each in zip(*chains, strict=True)]


def decoded(model: JanusModel, tokens: torch.Tensor, batch: int = 32) -> torch.Tensor:
    """Image tokens [b, N] -> images uint8 [b, 3, H, W]."""
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16.has_units("cpu")):
        for part in tokens.long().split(batch):
            made = model.network.model.vqmodel.decode(cast(torch.LongTensor, part)).float().clamp(-1, 1)
            parts.append(((made + 1) * 127.5).round().byte())
    return torch.cat(parts)


def resampled_scenes(
    book: DetectorScenes, model: JanusModel, count: int, rng: np.random.Generator
) -> tuple[torch.Tensor, list[Scene]]:
    """Tokens int64 [n, N] of about 1.9 times `count` resampled scenes, half of them warped before, and what they show."""
    tokens: list[torch.Tensor] = []
    shown: list[Scene] = []
    for depth, share in enumerate(DEPTHS, 1):
        kinds = rng.choice(len(KINDS), size=max(1, round(count * share)), p=SHARES)
        scenes = [book.training_scene(KINDS[kind], rng) for kind in kinds]
        pixels = book.render(scenes, rng, tilt=8.0)
        pixels[::2] = warped(pixels[::2], rng)
        tokens += resampled(model, pixels, [_caption(scene, rng) for scene in scenes], depth, rng)
        shown += scenes * depth
    return torch.cat(tokens), shown


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    """What the model is told of a scene: nothing where none of training's prompts would say all that is there."""
    return describe(scene, rng) if len(scene.items) == 1 or scene.kind in ("two", "counting", "position") else ""


@dataclass(frozen=True)
class Pool:
    """Resampled scenes: images uint8 [n, 3, H, W] and what they show."""

    images: torch.Tensor
    scenes: list[Scene]

    @classmethod
    def fill(cls, book: DetectorScenes, model: JanusModel, folder: Path, count: int, seed: int = 0) -> Pool:
        """Resample `count` scenes into files of `CHUNK` of them; files that are there already are only read."""
        folder.mkdir(parents=True, exist_ok=True)
        images, scenes = [], []
        for start in range(0, count, CHUNK):
            path = folder / f"resampled-{seed}-{start}.safetensors"
            if not path.exists():
                made = resampled_scenes(book, model, min(CHUNK, count - start), np.random.default_rng([seed, start, 9]))
                keep_tokens(path, *made)
            tokens, shown = kept_tokens(path)
            images.append(decoded(model, tokens))
            scenes += shown
        return cls(torch.cat(images), scenes)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
        """Some of them as images [count, 3, H, W] in -1..1, half of them mirrored."""
        rows = rng.integers(len(self.scenes), size=count)
        pixels = self.images[torch.from_numpy(rows)].float() / 127.5 - 1
        turned = rng.random(count) < 0.5
        pixels = torch.where(torch.from_numpy(turned)[:, None, None, None], pixels.flip(-1), pixels)
        scenes = [self.scenes[row] for row in rows]
        return pixels, [mirrored(scene) if turn else scene for scene, turn in zip(scenes, turned, strict=True)]


def keep_tokens(path: Path, tokens: torch.Tensor, scenes: list[Scene]) -> Path:
    """Write image tokens [n, N] as int16, and what each image shows as metadata."""
    facts = json.dumps([asdict(scene) for scene in scenes])
    return write_whole(path, lambda target: save_file({"tokens": tokens.to(torch.int16)}, target, {"scenes": facts}))


def kept_tokens(path: Path) -> tuple[torch.Tensor, list[Scene]]:
    """Read what `keep_tokens` wrote."""
    with safe_open(str(path), "pt") as file:
        facts: list[dict[str, Any]] = json.loads(file.metadata()["scenes"])
        scenes = [Scene(**{**fact, "items": tuple(Item(**item) for item in fact["items"])}) for fact in facts]
        return file.get_tensor("tokens"), scenes


def training_scenes(
    book: DetectorScenes, vq: JanusVQVAE, pools: Sequence[Pool], rng: np.random.Generator, fast: bool
) -> tuple[torch.Tensor, list[Scene]]:
    """One batch: images [b, 3, H, W] in -1..1 and what is in them. A third is of the pools, in equal parts; else composed."""
    part = BATCH // 6
    pooled = [pool.sample(BATCH // 3 // len(pools), rng) for pool in pools]
    known = [scene for _, scenes in pooled for scene in scenes]
    kinds = rng.choice(len(KINDS), size=BATCH - part - len(known), p=SHARES)
    scenes = [book.training_scene(KINDS[kind], rng) for kind in kinds]
    pixels = book.render(scenes, rng, tilt=8.0)
    some = torch.from_numpy(rng.permutation(len(scenes))[: len(scenes) // 2])
    pixels[some] = warped(pixels[some], rng)
    for row in np.flatnonzero(rng.random(len(scenes)) < GARBLED):
        pixels[row] = shuffled(pixels[row], rng)
        scenes[row] = Scene("empty", (), scenes[row].background)
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        pixels[:part] = seen_through(vq, pixels[:part].contiguous(memory_format=torch.channels_last), rng)
    pixels = torch.cat([pixels, pixels[:part].flip(-1)])
    scenes += [mirrored(scene) for scene in scenes[:part]]
    if pooled:
        more = torch.cat([images for images, _ in pooled])
        more[::2] = warped(more[::2], rng)
        pixels, scenes = torch.cat([pixels, more]), scenes + known
    return worn(pixels, rng), scenes
