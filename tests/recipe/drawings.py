"""An image file without images: plain squares, a colour each drawing."""

from __future__ import annotations

import numpy as np
import torch

from headscope.recipe.detector_data import DetectorScenes
from headscope.recipe.images import Stickers
from headscope.recipe.scenes import CLASSES


def squares() -> DetectorScenes:
    """All classes in two styles, and two concepts more; one drawing is kept for the test."""
    classes = [(concept, style) for concept in CLASSES.values() for style in ("flat", "noto")]
    pairs = [*classes, ("robot", "noto"), ("heart suit", "noto")]
    rgba = torch.rand(len(pairs), 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 96, 96).clone()
    held_out = np.zeros(len(pairs), bool)
    held_out[0] = True
    return DetectorScenes(Stickers(rgba, [concept for concept, _ in pairs], [style for _, style in pairs], held_out))
