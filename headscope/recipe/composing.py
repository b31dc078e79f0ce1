"""What a step learns from: fresh images, and for the transformer the ids of their prompts. A function of the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from headscope.recipe.images import Batch, Stickers, sample_batch
from headscope.recipe.presets import Preset
from headscope.recipe.scenes import SceneBook
from headscope.recipe.tokenizer import special_ids

DROPPED = 0.1  # share of prompts replaced by pads, which is what guidance's unconditional stream sees
NARROWING, NARROW = (0.58, 0.70), 0.4  # shares of the run between which `spread` falls from 1, and where it stays
CROPS_UNTIL = 0.85  # share of the VQ model's steps that train on crops; the rest see whole images, as the norms will


def captions_to_ids(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], dropped: np.ndarray, device: str, multiple: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask [b, prefix]; a dropped prompt becomes attended pads of its own length, as in `generate`.

    Args:
        tokenizer: of prompts.
        captions: b texts.
        dropped: bool [b].
        device: for the result.
        multiple: the prefix is padded to a multiple of this, for fewer different shapes.
    """
    ids = special_ids(tokenizer)
    texts = [text + "<begin_of_image>" for text in captions]
    batch = tokenizer(texts, padding=True, pad_to_multiple_of=multiple, return_tensors="pt")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    words = (tokens != ids["bos"]) & (tokens != ids["boi"])
    tokens = torch.where(words & torch.from_numpy(dropped)[:, None], ids["pad"], tokens)
    return tokens.to(device), mask.to(device)


def spread(done: float) -> float:
    """How far stickers range, `done` being the share of the run behind us: wide at first, for looks that carry over to any
    place; then narrowing, so that what is left of a short run goes into shapes."""
    begin, end = NARROWING
    return 1.0 - (1.0 - NARROW) * min(1.0, max(0.0, (done - begin) / (end - begin)))


def mixed_batch(
    preset: Preset,
    stickers: Stickers,
    train: np.ndarray,
    book: SceneBook | None,
    rng: np.random.Generator,
    device: str,
    spread: float,
) -> Batch:
    """`preset.batch` fresh images: scenes for the preset's share, single stickers of any concept for the rest."""
    scenes = 0 if book is None else round(preset.batch * preset.scenes)
    batch = sample_batch(stickers, rng.choice(train, preset.batch - scenes), rng, device, spread)
    if book is None or scenes == 0:
        return batch
    more = book.sample_batch(scenes, rng, device, spread)
    return Batch(torch.cat([batch.pixels, more.pixels]), [*batch.captions, *more.captions])


class Captioned:
    """Images and prompts for the transformer."""

    def __init__(
        self,
        preset: Preset,
        stickers: Stickers,
        tokenizer: PreTrainedTokenizerFast,
        seeds: tuple[Sequence[int], Sequence[int]],
        device: str = "cpu",
        *,
        narrow: bool = False,
        multiple: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            preset: size of a batch, and its share of scenes.
            stickers: drawings.
            tokenizer: of prompts.
            seeds: of all steps, what stands before and after the step's number.
            device: where images are composed.
            narrow: stickers range little from the beginning: looks that carry over to any place were learned before.
            multiple: of tokens that prompts are padded to.
        """
        self._preset, self._stickers, self._tokenizer = preset, stickers, tokenizer
        self._seeds, self._device, self._narrow, self._multiple = seeds, device, narrow, multiple
        self._train = stickers.indices(held_out=False)
        self.book = SceneBook(stickers) if preset.scenes else None

    def __call__(self, step: int, steps: int | None) -> dict[str, torch.Tensor]:
        """pixels float32 [b, 3, H, W] in -1..1, ids and mask int64 [b, prefix]."""
        rng = np.random.default_rng([*self._seeds[0], step, *self._seeds[1]])
        far = NARROW if self._narrow else spread(step / steps if steps else 0.0)
        batch = mixed_batch(self._preset, self._stickers, self._train, self.book, rng, self._device, far)
        dropped = rng.random(self._preset.batch) < DROPPED
        ids, mask = captions_to_ids(self._tokenizer, batch.captions, dropped, self._device, self._multiple)
        return {"pixels": batch.pixels, "ids": ids, "mask": mask}


class Cropped:
    """Images for the VQ model: crops of single stickers, whole images at the end."""

    def __init__(self, preset: Preset, stickers: Stickers, seeds: Sequence[int], device: str = "cpu", *, in_turn: bool) -> None:
        """Prepare.

        Args:
            preset: size of a batch.
            stickers: drawings.
            seeds: of all steps.
            device: where images are composed.
            in_turn: one stream of random numbers for all steps, which are then composed one after the other, here only.
        """
        self._preset, self._stickers, self._seeds, self._device = preset, stickers, seeds, device
        self._train = stickers.indices(held_out=False)
        self._stream = np.random.default_rng(seeds) if in_turn else None

    def __call__(self, step: int, steps: int | None) -> dict[str, torch.Tensor]:
        """pixels float32 [b, 3, H, W] in -1..1."""
        rng = self._stream or np.random.default_rng([*self._seeds, step])
        chosen = rng.choice(self._train, self._preset.vq_batch)
        pixels = sample_batch(self._stickers, chosen, rng, self._device).pixels
        whole = steps is not None and step >= steps * CROPS_UNTIL
        return {"pixels": pixels if whole else crop(pixels, rng)}


def crop(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A window of half the side, on the grid of tokens: four times cheaper, and most of what a code must learn is local."""
    side = pixels.shape[-1] // 2
    top, left = (4 * rng.integers(0, side // 4 + 1, size=2)).tolist()
    return pixels[:, :, top : top + side, left : left + side]
