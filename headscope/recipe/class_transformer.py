"""Training the transformer of `stickers-classes`: LlamaGen's, of 48 classes, on the image tokens of `stickers`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional
from transformers.models.janus.modeling_janus import JanusVQVAE

from headscope.models.grid_rotary import GridRotary
from headscope.models.llamagen import LlamaGenNetwork
from headscope.models.llamagen_files import Sizes
from headscope.recipe import attention, bf16
from headscope.recipe.composing import DROPPED, NARROW
from headscope.recipe.images import Stickers, load_stickers, sample_batch
from headscope.recipe.plan import Plan
from headscope.recipe.presets import PRESETS, Preset
from headscope.recipe.scenes import CLASSES
from headscope.recipe.stage import Lesson, Losses, train_stage
from headscope.recipe.transformer import fixed_batch
from headscope.recipe.vq import encode, load_vq

# As `quick` but for a layer less, so that everything together stays below 8 MB, and batches for one process alone.
SIZE = replace(PRESETS["quick"], name="classes", layers=7, batch=12, rate=0.03, adam_rate=3e-3)
NAMES = tuple(CLASSES)  # of the classes, from 0 on
DECAY = 0.38  # share of the run until which the learning rate is constant: small batches gain little from a high one
START = 0.02  # standard deviation of what embeds a class at first


def sizes_of(preset: Preset, classes: int) -> Sizes:
    """Of the network, for a preset's images and a number of classes."""
    return Sizes(
        kind="class",
        layers=preset.layers,
        heads=preset.heads,
        kv_heads=preset.heads,
        width=preset.hidden,
        inner=preset.intermediate,
        codes=preset.codes,
        side=preset.grid,
        prefix=1,
        classes=classes,
    )


def class_stickers(path: Path, preset: Preset, seed: int) -> Stickers:
    """The drawings of the classes; kept away are those that `stickers` never saw, if the seed is its own.

    Raises:
        DataError: the image file cannot be read.
    """
    found = load_stickers(path, preset, seed)
    rows = [row for row, concept in enumerate(found.concepts) if concept in CLASSES.values()]
    concepts, styles = ([column[row] for row in rows] for column in (found.concepts, found.styles))
    return Stickers(found.rgba[rows], concepts, styles, found.held_out[rows])


def numbers_of(stickers: Stickers) -> np.ndarray:
    """int64 [n]: the class of each drawing."""
    number = {concept: place for place, concept in enumerate(CLASSES.values())}
    return np.array([number[concept] for concept in stickers.concepts])


class Classed:
    """Images and classes for the transformer.

    Args:
        preset: size of a batch.
        stickers: drawings of the classes.
        seed: of all steps.
    """

    def __init__(self, preset: Preset, stickers: Stickers, seed: int) -> None:
        self._preset, self._stickers, self._seed = preset, stickers, seed
        self._train, self._numbers = stickers.indices(held_out=False), numbers_of(stickers)

    def __call__(self, step: int, steps: int | None) -> dict[str, torch.Tensor]:
        """pixels float32 [b, 3, H, W] in -1..1, classes int64 [b], the last for no class."""
        rng = np.random.default_rng([self._seed, step, 3])
        chosen = rng.choice(self._train, self._preset.batch)
        pixels = sample_batch(self._stickers, chosen, rng, spread=NARROW).pixels
        classes = np.where(rng.random(len(chosen)) < DROPPED, len(NAMES), self._numbers[chosen])
        return {"pixels": pixels, "classes": torch.from_numpy(classes)}


def fresh_network(sizes: Sizes, vq: JanusVQVAE, seed: int) -> LlamaGenNetwork:
    """A random transformer; codes that stand for like patches start alike."""
    torch.manual_seed(seed)
    network = LlamaGenNetwork(sizes)
    decoder, prefix = cast(Any, network.decoder), cast(Any, network.prefix)
    decoder.rotary_emb = GridRotary(sizes.head_dim, sizes.prefix, sizes.side)
    codes = vq.quantize.embedding.weight
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(codes @ torch.randn(codes.shape[1], sizes.width))
        prefix.weight.normal_(std=START)
        network.head.weight.zero_()
        for layer in decoder.layers:  # every block starts as the identity
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return network


def class_losses(network: LlamaGenNetwork, classes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Nats of each image token given the class and the tokens before it: [b, N]."""
    decoder: Any = network.decoder
    prefix: Any = network.prefix
    inputs = torch.cat([prefix(classes)[:, None], decoder.embed_tokens(tokens[:, :-1])], 1)
    hidden = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    return functional.cross_entropy(network.head(hidden).transpose(1, 2), tokens, reduction="none")


def train_classes(preset: Preset, stickers: Stickers, plan: Plan) -> None:
    """Train on a CPU, log to `transformer.csv`, checkpoint to `transformer.safetensors`; a stopped run goes on where it was.

    Args:
        preset: sizes.
        stickers: drawings of the classes.
        plan: its folder holds `vq.safetensors`.
    """
    vq = load_vq(preset, plan.folder)
    network = fresh_network(sizes_of(preset, len(NAMES)), vq, plan.seed).train()
    decoder: Any = network.decoder
    attention.use(decoder)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return class_losses(network, batch["classes"], encode(vq, batch["pixels"])).mean()

    held_out = {"unseen_pairs": True, "unseen_views": False}
    tests = {name: partial(_test_loss, loss_of, _test(stickers, away, plan)) for name, away in held_out.items()}
    lesson = Lesson(network, decoder, loss_of, Classed(preset, stickers, plan.seed), tests, DECAY)
    with bf16.products():
        train_stage(0, preset, lesson, plan)


def _test(stickers: Stickers, held_out: bool, plan: Plan) -> dict[str, torch.Tensor]:
    """A batch that is the same throughout."""
    chosen, batch = fixed_batch(stickers, stickers.indices(held_out=held_out), plan)
    return {"pixels": batch.pixels, "classes": torch.from_numpy(numbers_of(stickers)[chosen])}


@torch.no_grad()
def _test_loss(loss_of: Losses, batch: dict[str, torch.Tensor]) -> float:
    return float(loss_of(batch))
