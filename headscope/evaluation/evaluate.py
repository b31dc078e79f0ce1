"""Generate with the full cache and with each policy, from the same prompts and seeds, and measure what became of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from headscope.errors import CacheError, DataError
from headscope.evaluation.claims import claim, claim_names, note_decoders
from headscope.evaluation.layouts import check_layout
from headscope.evaluation.measuring import Measured, Measurer
from headscope.models import ImageModel, warn_of_unknown_words
from headscope.policy import Policy
from headscope.progress import Progress, of_task, renamed
from headscope.prompt_files import Asked
from headscope.runtime import (
    FULL,
    OTHER,
    OTHER_SEED,
    ImageBatches,
    Sampling,
    Variant,
    batch_for,
    batches_to_generate,
    check_prefix,
    decoder_name,
    seconds_of,
)
from headscope.samples import Samples
from headscope.stickereval import GradingPrompt, category_scores, paired_difference
from headscope.storage import write_csv, write_parquet

MEMORY = 2 * 2**30
_TO_REAL = ("kernel", "kernel_spread", "frechet")


@dataclass(frozen=True)
class Task:
    """A batch of images to generate.

    Attributes:
        variant: the policy, where seeds begin, and the decoder.
        dtype: that the model is to be loaded in, such as "bfloat16".
        folder: for the batches of this variant.
        numbers: of the images, see `ImageBatches`.
    """

    variant: Variant
    dtype: str
    folder: Path
    numbers: list[int]


# Generates tasks: (tasks, prompts, seeds a prompt, guidance).
Generators = Callable[[Sequence[Task], Sequence[str], int, float | None], None]


@dataclass(frozen=True)
class EvaluationConfig:
    """What and how to measure.

    Attributes:
        seeds: images a prompt.
        guidance: scale of classifier-free guidance, 1 for none; None: the model's own.
        grading: what StickerEval is to find, one a prompt; None: nothing is graded.
        real: folder of PNG files, for the distances to real images.
        layout: "geneval" or "dpg": folders that those scorers read, in place of plain ones.
        memory: bytes for the caches of a batch.
    """

    seeds: int = 8
    guidance: float | None = None
    grading: Sequence[GradingPrompt] | None = None
    real: str | Path | None = None
    layout: str | None = None
    memory: int = MEMORY


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        images: a row an image: variant, prompt, seed, text, and where measured psnr, ssim, cosine (to the full cache's
            image of the same prompt and seed), agreement (of tokens), tag, correct, reason, found.
        likeness: a row a variant: means of those, kernel, kernel_spread, frechet (to real images), cache_bytes, seconds (a
            image).
        scores: a row a variant and category: score, low, high, difference, difference_low, difference_high (paired, to the full
            cache); empty without grading prompts.
        by_row: a row a variant and row of the image: agreement.
    """

    images: pd.DataFrame
    likeness: pd.DataFrame
    scores: pd.DataFrame
    by_row: pd.DataFrame


def evaluate(
    model: ImageModel,
    prompts: Sequence[Asked | str],
    policies: Mapping[str, Policy],
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    other_dtype: Callable[[], ImageModel] | None = None,
    generators: Generators | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate policies; the same call continues in `out` after a stop, and generates and measures no image twice.

    Args:
        model: what generates.
        prompts: texts, or what `read_asked` read.
        policies: by name; `full`, and the floors `other_seed` and `full_bfloat16` (or float32) stand beside them.
        out: folder of images and tables.
        config: what and how to measure (default: `EvaluationConfig()`).
        other_dtype: loads the same model in the other dtype, for that floor; None: no such floor.
        generators: generates what is missing before this process does, in other processes say; `other_dtype` is then bfloat16
            beside float32, or float32.
        progress: told what is being done, see `headscope.progress`.

    Raises:
        DataError: `out` holds an evaluation of something else, or a prompt, a policy or an image that cannot be used.
    """
    out, config = Path(out), config or EvaluationConfig()
    asked = [Asked(one, f"{number:05d}") if isinstance(one, str) else one for number, one in enumerate(prompts)]
    texts, seeds = [one.prompt for one in asked], config.seeds
    variants = _variants(policies)
    check_layout(config.layout, asked, seeds)
    if config.real is not None and len(asked) * seeds < 2:
        raise DataError("real: a distance needs at least two images on each side; give more prompts or seeds.")
    real = None if config.real is None else _real(Path(config.real))  # what cannot be read is told before anything is generated
    encoded = model.tokenize(texts)
    streams, prefix = Sampling(config.guidance).of(model).streams, encoded.ids.shape[1]
    _check_lengths(policies, texts, encoded.mask.sum(1))
    batch = batch_for(model, variants, prefix, streams, config.memory)
    claim(out, model, asked, seeds, config.guidance, config.layout)  # after all that can be wrong with what was asked
    claim_names(out, policies)
    note_decoders(out, {variant.name: decoder_name(model, variant.policy) for variant in variants})
    warn_of_unknown_words(model, texts)
    if generators is not None:
        generators(
            _tasks(model, variants, out, len(texts) * seeds, batch, other_dtype is not None), texts, seeds, config.guidance
        )
    samples = _generated(model, other_dtype, variants, texts, config, out / "tokens", batch, progress)
    measurer = Measurer(model, samples[FULL], asked, out, seeds, config.grading, real, config.layout)
    measured: dict[str, Measured] = {}
    tell = of_task(progress, "measuring", len(samples))
    for name in [FULL, *(name for name in samples if name.startswith(f"{FULL}_")), OTHER_SEED, *policies]:
        measured[name] = measurer.measure(name, samples[name])
        tell(len(measured), len(samples))
    sizes = {variant.name: variant.cache_bytes(model, prefix, streams) for variant in variants}
    return _written(out, measured, sizes, {name: seconds_of(out / "tokens" / name) for name in measured})


def _variants(policies: Mapping[str, Policy]) -> list[Variant]:
    """The full cache, another seed of it, and each policy."""
    if taken := {FULL, OTHER_SEED, *(f"{FULL}_{dtype}" for dtype in ("bfloat16", "float16", "float32"))} & set(policies):
        raise DataError(f"policy name {sorted(taken)[0]}: is that of a row that every table has; name the file otherwise.")
    floors = [Variant(FULL), Variant(OTHER_SEED, first_seed=Variant(FULL).first_seed + OTHER)]
    return floors + [Variant(name, policy) for name, policy in policies.items()]


def _tasks(
    model: ImageModel, variants: Sequence[Variant], out: Path, images: int, batch: int, in_other_dtype: bool
) -> list[Task]:
    """The batches that are missing, those of the full cache in the other dtype last."""
    dtype = str(model.dtype).removeprefix("torch.")
    wanted = [(variant, dtype, variant.name) for variant in variants]
    if in_other_dtype:
        floor = "bfloat16" if dtype == "float32" else "float32"
        wanted.append((Variant(FULL), floor, f"{FULL}_{floor}"))
    folders = [(variant, its, out / "tokens" / name) for variant, its, name in wanted]
    return [Task(*one, numbers) for one in folders for numbers in batches_to_generate(one[2], images, batch)]


def _generated(
    model: ImageModel,
    other_dtype: Callable[[], ImageModel] | None,
    variants: Sequence[Variant],
    texts: Sequence[str],
    config: EvaluationConfig,
    folder: Path,
    batch: int,
    progress: Progress | None,
) -> dict[str, Samples]:
    """The images of every variant as tokens, by name; those that stand in `folder` are read."""
    found: dict[str, Samples] = {}

    def generate(source: ImageModel, variant: Variant, name: str) -> None:
        batches = ImageBatches(source, variant, texts, config.seeds, folder / name, Sampling(config.guidance))
        found[name] = batches.all(batch, renamed(progress, f"generating {name}"))

    for variant in variants:
        generate(model, variant, variant.name)
    if other_dtype is not None:
        other = other_dtype()
        generate(other, Variant(FULL), f"{FULL}_{str(other.dtype).removeprefix('torch.')}")
    return found


def _written(out: Path, measured: dict[str, Measured], sizes: dict[str, int], seconds: dict[str, float]) -> Evaluation:
    rows = [
        {
            "variant": name,
            **{key: value for key, value in one.means.items() if key not in _TO_REAL},
            "cache_bytes": sizes.get(name, 0) or np.nan,
            "seconds": seconds[name],
            **{key: one.means[key] for key in _TO_REAL if key in one.means},
        }
        for name, one in measured.items()
    ]
    by_row = [
        {"variant": name, "row": row, "agreement": share}
        for name, one in measured.items()
        for row, share in enumerate(one.by_row)
    ]
    graded = {name: one.images for name, one in measured.items() if "tag" in one.images}
    images = pd.concat([one.images for one in measured.values()], ignore_index=True)
    found = Evaluation(images, pd.DataFrame(rows), _scores(graded), pd.DataFrame(by_row))
    write_parquet(found.images, out / "images.parquet")
    for name in ("likeness", "scores", "by_row"):
        _write_csv(getattr(found, name), out / f"{name}.csv")
    return found


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_csv(table, path, float_format="%.6g")


def _scores(graded: dict[str, pd.DataFrame]) -> pd.DataFrame:
    if not graded:
        return pd.DataFrame(columns=["variant", "category", "score", "low", "high"])
    parts = []
    for name, table in graded.items():
        mine = category_scores(table).assign(variant=name)
        apart = paired_difference(table, graded[FULL]).drop(columns="prompts")
        apart = apart.rename(columns={"low": "difference_low", "high": "difference_high"})
        parts.append(mine.merge(apart, on="category"))
    table = pd.concat(parts, ignore_index=True)
    return table[["variant", *[name for name in table.columns if name != "variant"]]]


def _real(folder: Path) -> np.ndarray:
    """All PNG files below a folder, uint8 [n, height, width, 3], brought to the size of the first."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one with at least two real images (PNG).")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")
    if len(files) < 2:
        raise DataError(f"{folder}: found {len(files)} PNG files, expected a folder with at least two real images.")
    found: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # so Pillow says it
            raise DataError(f"{file}: not a readable image ({error}).") from None
        size = rgb.size if not found else (found[0].shape[1], found[0].shape[0])
        found.append(np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)))
    return np.stack(found)


def _check_lengths(policies: Mapping[str, Policy], prompts: Sequence[str], lengths: torch.Tensor) -> None:
    """Refuse a prompt that is too long for a policy before anything is generated."""
    longest = int(lengths.argmax())
    for name, policy in policies.items():
        try:
            check_prefix(policy, int(lengths[longest]), prompts[longest])
        except CacheError as error:
            raise DataError(f"policy {name}: {error}") from None
