"""An image file without images: plain squares, a colour each drawing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from headscope.recipe.detector_data import DetectorScenes
from headscope.recipe.images import Stickers
from headscope.recipe.presets import PRESETS
from headscope.recipe.scenes import CLASSES
from headscope.recipe.tokenizer import build_tokenizer

TINY = replace(
    PRESETS["scenes"], name="tiny", pixels=16, codes=16, vq_base=32, hidden=16, layers=2, heads=2, intermediate=16, batch=4
)  # fmt: skip


def tiny_stickers() -> Stickers:
    """All classes in two styles, of 16 pixels; one drawing is kept for the test."""
    pairs = [(concept, style) for concept in CLASSES.values() for style in ("flat", "noto")]
    rgba = torch.rand(len(pairs), 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16).clone()
    return Stickers(rgba, [concept for concept, _ in pairs], [style for _, style in pairs], np.arange(len(pairs)) == 0)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Of its prompts."""
    return build_tokenizer(tiny_stickers().concepts, 32)


def squares() -> DetectorScenes:
    """All classes in two styles, and two concepts more; one drawing is kept for the test."""
    classes = [(concept, style) for concept in CLASSES.values() for style in ("flat", "noto")]
    pairs = [*classes, ("robot", "noto"), ("heart suit", "noto")]
    rgba = torch.rand(len(pairs), 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 96, 96).clone()
    held_out = np.zeros(len(pairs), bool)
    held_out[0] = True
    return DetectorScenes(Stickers(rgba, [concept for concept, _ in pairs], [style for _, style in pairs], held_out))
