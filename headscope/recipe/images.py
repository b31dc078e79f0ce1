"""Images for training: stickers placed anew each time, so that no image comes twice the same."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional

from headscope.errors import DataError
from headscope.recipe.presets import BACKGROUNDS, EVERYDAY, Preset

COLUMNS = ("concept", "style", "caption", "licence", "source", "webp")
HELD_OUT_SHARE = 0.03


@dataclass(frozen=True)
class Stickers:
    """Decoded stickers.

    rgba: float32 [n, 4, pixels, pixels], colour premultiplied by alpha, in 0..1.
    concepts, styles: n strings each.
    held_out: bool [n], (concept, style) pairs that training never sees.
    """

    rgba: torch.Tensor
    concepts: list[str]
    styles: list[str]
    held_out: np.ndarray

    def indices(self, *, held_out: bool) -> np.ndarray:
        return np.flatnonzero(self.held_out == held_out)


def load_stickers(path: str | Path, preset: Preset, seed: int = 0) -> Stickers:
    """Read a parquet file with the columns `concept, style, caption, licence, source, webp`.

    Raises:
        DataError: missing file or columns, or none of the preset's concepts in it.
    """
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file; build one with `python -m headscope.recipe images`.") from None
    except Exception as error:
        raise DataError(f"{path}: not a readable parquet file ({error}).") from None
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"{path}: columns {', '.join(missing)} are missing; expected {', '.join(COLUMNS)}.")
    if preset.everyday:
        table = table[table["concept"].isin(EVERYDAY)]
    table = table.sort_values(["concept", "style", "source"]).drop_duplicates(["concept", "style"]).reset_index(drop=True)
    if table.empty:
        raise DataError(f"{path}: holds none of the {len(EVERYDAY)} everyday concepts that this preset trains on.")
    images = np.empty((len(table), preset.pixels, preset.pixels, 4), dtype=np.uint8)
    for row, blob in enumerate(table["webp"]):
        image = Image.open(io.BytesIO(blob)).convert("RGBa")
        images[row] = np.asarray(image.resize((preset.pixels, preset.pixels), Image.Resampling.LANCZOS))
    held_out = np.random.default_rng(seed).random(len(table)) < HELD_OUT_SHARE
    rgba = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
    return Stickers(rgba, list(table["concept"]), list(table["style"]), held_out)


@dataclass(frozen=True)
class Batch:
    """pixels: float32 [b, 3, H, W] in -1..1; captions: what a user would have typed for each."""

    pixels: torch.Tensor
    captions: list[str]


def caption(concept: str, style: str | None, background: str | None) -> str:
    """`red apple, noto style, blue background`, the last two parts optional."""
    parts = [concept]
    if style:
        parts.append(f"{style} style")
    if background:
        parts.append(f"{background} background")
    return ", ".join(parts)


def sample_batch(
    stickers: Stickers, chosen: np.ndarray, rng: np.random.Generator, device: str = "cpu", spread: float = 1.0
) -> Batch:
    """Place each chosen sticker with a fresh place, scale, mirror, tilt and background colour.

    Args:
        spread: how far place, scale and tilt range; 1 is up to 18 % smaller, tilted by 10 degrees, anywhere it fits.
    """
    count, size = len(chosen), stickers.rgba.shape[-1]
    scale = 1 - 0.18 * spread * rng.uniform(0, 1, count)
    tilt = np.deg2rad(10 * spread * rng.uniform(-1, 1, count))
    mirror = np.where(rng.random(count) < 0.5 * spread, -1.0, 1.0)
    reach = np.maximum(0.0, 1.04 - scale)  # the sticker may touch the edge, hardly cross it
    place = rng.uniform(-1, 1, (count, 2)) * reach[:, None]
    names = list(BACKGROUNDS)
    background = rng.integers(len(names), size=count)
    cosine, sine = np.cos(tilt) / scale, np.sin(tilt) / scale
    matrix = np.stack(
        [
            np.stack([mirror * cosine, mirror * sine, -mirror * (cosine * place[:, 0] + sine * place[:, 1])], 1),
            np.stack([-sine, cosine, sine * place[:, 0] - cosine * place[:, 1]], 1),
        ],
        1,
    )
    theta = torch.from_numpy(matrix).float().to(device)
    picked = stickers.rgba[torch.from_numpy(chosen).to(stickers.rgba.device)].to(device)
    grid = functional.affine_grid(theta, [count, 4, size, size], align_corners=False)
    placed = functional.grid_sample(picked, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    colours = torch.tensor([BACKGROUNDS[names[b]] for b in background], device=device).float().div_(255)
    pixels = placed[:, :3] + (1 - placed[:, 3:]) * colours[:, :, None, None]
    said_style, said_background = rng.random(count) < 0.9, rng.random(count) < 0.5
    captions = [
        caption(
            stickers.concepts[index],
            stickers.styles[index] if said_style[i] else None,
            names[background[i]] if said_background[i] else None,
        )
        for i, index in enumerate(chosen)
    ]
    return Batch(pixels.clamp_(0, 1).mul_(2).sub_(1), captions)


def prompts_by_seed(stickers: Stickers, count: int, seed: int) -> list[str]:
    """Different captions of stickers, chosen by seed and not by hand: every other one names a background."""
    rng = np.random.default_rng(seed)
    names = list(BACKGROUNDS)
    chosen = rng.permutation(len(stickers.concepts))[:count]
    backgrounds = [
        names[b] if said else None
        for b, said in zip(rng.integers(len(names), size=count), rng.random(count) < 0.5, strict=True)
    ]
    return [caption(stickers.concepts[i], stickers.styles[i], b) for i, b in zip(chosen, backgrounds, strict=False)]


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Images in -1..1 as uint8."""
    return ((pixels + 1) * 127.5).round().byte()


def from_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images of uint8 as float32 in -1..1, where they are."""
    return images.float().div_(127.5).sub_(1)
