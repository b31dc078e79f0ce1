"""How well a bundled model generates what it is told: a sheet of samples, and StickerEval's score beside another model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional

from headscope.models import ImageModel
from headscope.recipe.images import caption
from headscope.recipe.scenes import CLASSES
from headscope.reporting import contact_sheet
from headscope.runtime import Sampling, generate
from headscope.stickereval import GradingPrompt, StickerEval, category_scores, paired_difference, read_grading_prompts
from headscope.stickereval.detector import PIXELS

FIRST_SEED = 2_000_000  # far from those of sheets and of evaluations


def prompts_for(scenes: bool) -> list[GradingPrompt]:
    """StickerEval's prompts; for a model of single stickers only those of one thing, in the words that it learned."""
    prompts = read_grading_prompts()
    if scenes:
        return prompts
    things = [(prompt, prompt.include[0]) for prompt in prompts if prompt.tag in ("single", "style")]
    return [replace(prompt, prompt=caption(CLASSES[thing.name], thing.style, None)) for prompt, thing in things]


def grade(
    model: ImageModel, prompts: Sequence[GradingPrompt], grader: StickerEval, views: int = 1, batch_size: int | None = None
) -> pd.DataFrame:
    """`StickerEval.grade`'s table of `views` images a prompt, the same seeds for every model.

    Args:
        model: what generates; images of another size than the grader's are resized.
        prompts: what is asked for.
        grader: what looks.
        views: images a prompt.
        batch_size: images generated together.
    """
    asked = [prompt for prompt in prompts for _ in range(views)]
    samples = generate(model, [one.prompt for one in asked], FIRST_SEED, batch_size=batch_size)
    return grader.grade(_resized(model.to_images(samples.tokens)), asked)


def _resized(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, H, W, 3] -> uint8 [n, PIXELS, PIXELS, 3]."""
    if images.shape[1] == PIXELS:
        return images
    floats = images.permute(0, 3, 1, 2).float()
    sized = functional.interpolate(floats, (PIXELS, PIXELS), mode="bilinear", antialias=True)
    return sized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Comparison:
    """Scores of a new model and of the one that ships, on the same prompts and seeds.

    Attributes:
        table: columns `category, score, low, high, shipped, shipped_low, shipped_high, difference, difference_low,
            difference_high, prompts, images`; scores are shares in 0..1, with 95 % bootstrap intervals over prompts.
    """

    table: pd.DataFrame

    @classmethod
    def of(cls, new: pd.DataFrame, shipped: pd.DataFrame) -> Comparison:
        """Compare two tables of `grade`."""
        names = {"score": "shipped", "low": "shipped_low", "high": "shipped_high"}
        theirs = category_scores(shipped)[["category", *names]].rename(columns=names)
        gap = paired_difference(new, shipped).drop(columns="prompts")
        gap = gap.rename(columns={"low": "difference_low", "high": "difference_high"})
        table = category_scores(new).merge(theirs, on="category").merge(gap, on="category")
        return cls(table[[*[name for name in table.columns if name not in ("prompts", "images")], "prompts", "images"]])

    def sentence(self) -> str:
        """Both overall scores."""
        row = self.table[self.table["category"] == "overall"].iloc[0]
        return (
            f"StickerEval gives it {row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f}) and the model that ships "
            f"{row['shipped']:.3f} ({row['shipped_low']:.3f} to {row['shipped_high']:.3f}), from the same prompts and seeds of "
            f"{row['images']:,} images."
        )


def write_sheet(
    model: ImageModel,
    prompts: Sequence[str],
    out: Path,
    seed: int = 1,
    guidance: float | None = None,
    batch_size: int | None = None,
) -> Path:
    """Generate an image a prompt and write them as a contact sheet.

    Args:
        model: what generates.
        prompts: what is asked for.
        out: PNG file.
        seed: of the first image; each has the next one.
        guidance: None for the model's own.
        batch_size: images generated together.
    """
    samples = generate(model, list(prompts), seed, sampling=Sampling(guidance=guidance), batch_size=batch_size)
    pixels = model.to_images(samples.tokens)
    return contact_sheet([(prompt, [image.numpy()]) for prompt, image in zip(prompts, pixels, strict=True)], [], out)
