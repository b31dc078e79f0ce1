"""Draw with the full cache and with each policy, from the same prompts and seeds, and measure what became of the pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from headscope.errors import DataError
from headscope.evaluation.distances import distances
from headscope.evaluation.drawing import FULL, OTHER, OTHER_SEED, Variant, batch_for, draw_variant, seconds_of
from headscope.evaluation.features import FeatureNetwork
from headscope.evaluation.grader import StickerEval, category_scores, paired_difference
from headscope.evaluation.layouts import Asked, save_picture, write_dpg, write_geneval
from headscope.evaluation.likeness import cosine, likeness, token_agreement
from headscope.evaluation.prompts import GradingPrompt
from headscope.models.protocol import ImageModel
from headscope.models.samples import Samples
from headscope.policy import Policy
from headscope.storage import read_json, write_json, write_whole

MEMORY = 2 * 2**30
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        pictures: a row a picture: variant, prompt, seed, text, and where measured psnr, ssim, cosine (to the full cache's
            picture of the same prompt and seed), agreement (of tokens), tag, correct, reason, found.
        likeness: a row a variant: means of those, kernel, kernel_spread, frechet (to real pictures), cache_bytes, seconds (a
            picture).
        scores: a row a variant and category: score, low, high, difference, difference_low, difference_high (paired, to the full
            cache); empty without grading prompts.
        by_row: a row a variant and row of the image: agreement.
    """

    pictures: pd.DataFrame
    likeness: pd.DataFrame
    scores: pd.DataFrame
    by_row: pd.DataFrame


def evaluate(
    model: ImageModel,
    asked: Sequence[Asked],
    policies: Mapping[str, Policy],
    out: str | Path,
    *,
    seeds: int = 8,
    grading: Sequence[GradingPrompt] | None = None,
    other_dtype: Callable[[], ImageModel] | None = None,
    real: str | Path | None = None,
    layout: str | None = None,
    memory: int = MEMORY,
    guidance: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate policies; the same call continues in `out` after a stop, and draws no picture twice.

    Args:
        asked: the prompts. grading: what StickerEval is to find in each (one a prompt), or None.
        policies: by name; `full`, and the floors `other_seed` and `full_bfloat16` (or float32) stand beside them.
        other_dtype: loads the same model in the other dtype, for that floor.
        real: folder of PNG files, for the distances. layout: "geneval" or "dpg" folders in place of plain ones.
        memory: bytes for the caches of a batch.

    Raises:
        DataError: `out` holds an evaluation of something else, or a prompt, a policy or a picture that cannot be used.
    """
    out = Path(out)
    variants = [Variant(FULL), Variant(OTHER_SEED, first_seed=Variant(FULL).first_seed + OTHER)]
    if taken := {FULL, OTHER_SEED} & set(policies):
        raise DataError(f"policy name {sorted(taken)[0]}: is that of a row that every table has; name the file otherwise.")
    variants += [Variant(name, policy) for name, policy in policies.items()]
    others = None if real is None else _real(Path(real))  # what cannot be read is told before anything is drawn
    _claim(out, model, asked, seeds, guidance, layout)
    prompts = [one.prompt for one in asked]
    encoded = model.encode(prompts)
    streams = 1 if (model.guidance if guidance is None else guidance) == 1.0 else 2
    batch = batch_for(model, variants, encoded.ids.shape[1], streams, memory)
    drawn: dict[str, Samples] = {}

    def draw(source: ImageModel, variant: Variant, name: str) -> None:
        shown = None if progress is None else (lambda done, total: progress(f"drawing {name}", done, total))
        drawn[name] = draw_variant(source, variant, prompts, seeds, out / "tokens" / name, batch, guidance, shown)

    for variant in variants:
        draw(model, variant, variant.name)
    if other_dtype is not None:
        other = other_dtype()
        draw(other, Variant(FULL), f"{FULL}_{str(other.dtype).removeprefix('torch.')}")
        del other
    sizes = {variant.name: variant.cache_bytes(model, encoded.ids.shape[1], streams) for variant in variants}
    names = [FULL, *(name for name in drawn if name.startswith(f"{FULL}_")), OTHER_SEED, *policies]
    return _measure(model, {name: drawn[name] for name in names}, sizes, asked, out, seeds, grading, others, layout, progress)


def _measure(
    model: ImageModel,
    drawn: dict[str, Samples],
    sizes: dict[str, int],
    asked: Sequence[Asked],
    out: Path,
    seeds: int,
    grading: Sequence[GradingPrompt] | None,
    real: np.ndarray | None,
    layout: str | None,
    progress: Progress | None,
) -> Evaluation:
    network = FeatureNetwork(str(model.device))
    real_features = None if real is None else network(real)
    grader = None if grading is None else StickerEval(device=str(model.device))
    reference = _images(model, drawn[FULL])
    reference_features = network(reference)
    pictures, rows, by_row, graded = [], [], [], {}
    for done, (name, samples) in enumerate(drawn.items()):
        if progress is not None:
            progress("measuring", done, len(drawn))
        images = reference if name == FULL else _images(model, samples)
        _write(out / name, images.numpy(), asked, seeds, layout)
        features = reference_features if name == FULL else network(images)
        like = likeness(images, reference)
        agreement = token_agreement(samples.tokens, drawn[FULL].tokens, model.shape.geometry.row_length)
        table = pd.DataFrame(
            {
                "variant": name,
                "prompt": np.repeat(range(len(asked)), seeds),
                "seed": samples.seeds.numpy(),
                "text": samples.prompts,
                "psnr": like["psnr"].numpy(),
                "ssim": like["ssim"].numpy(),
                "cosine": cosine(features, reference_features).numpy(),
                "agreement": agreement.mean(1).numpy(),
            }
        )
        if grader is not None and grading is not None:
            wanted = [grading[number // seeds] for number in range(len(samples))]
            graded[name] = grader.grade(images, wanted)
            table = pd.concat([table, graded[name][["tag", "correct", "reason", "found"]]], axis=1)
        pictures.append(table)
        by_row += [{"variant": name, "row": row, "agreement": float(x)} for row, x in enumerate(agreement.mean(0))]
        finite = table["psnr"].replace(np.inf, np.nan)
        row: dict[str, Any] = {
            "variant": name,
            "psnr": float(finite.mean()),
            "same": float(np.isinf(table["psnr"]).mean()),
            **{measure: float(table[measure].mean()) for measure in ("ssim", "cosine", "agreement")},
            "cache_bytes": sizes.get(name, 0) or np.nan,
            "seconds": seconds_of(out / "tokens" / name),
        }
        if real_features is not None:
            apart = distances(features, real_features)
            row |= {"kernel": apart.kernel, "kernel_spread": apart.kernel_spread, "frechet": apart.frechet}
        rows.append(row)
    found = Evaluation(pd.concat(pictures, ignore_index=True), pd.DataFrame(rows), _scores(graded), pd.DataFrame(by_row))
    write_whole(out / "pictures.parquet", lambda path: found.pictures.to_parquet(path, index=False))
    for name in ("likeness", "scores", "by_row"):
        _write_csv(getattr(found, name), out / f"{name}.csv")
    return found


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, lambda target: table.to_csv(target, index=False, float_format="%.6g"))


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


def _images(model: ImageModel, samples: Samples, batch_size: int = 16) -> torch.Tensor:
    """uint8 [n, height, width, 3]."""
    return torch.cat([model.to_images(part) for part in samples.tokens.split(batch_size)])


def _write(folder: Path, images: np.ndarray, asked: Sequence[Asked], seeds: int, layout: str | None) -> None:
    for number, one in enumerate(asked):
        mine = list(images[number * seeds : (number + 1) * seeds])
        if layout == "geneval":
            write_geneval(folder, number, one, mine)
        elif layout == "dpg":
            write_dpg(folder, one, mine)
        else:
            for seed, picture in enumerate(mine):
                save_picture(picture, folder / f"{number:05d}-{seed}.png")


def _real(folder: Path) -> np.ndarray:
    """All PNG files below a folder, uint8 [n, height, width, 3], brought to the size of the first."""
    files = sorted(folder.rglob("*.png")) if folder.is_dir() else []
    if len(files) < 2:
        raise DataError(f"{folder}: found {len(files)} PNG files, expected a folder with at least two real pictures.")
    found: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                rgb = picture.convert("RGB")
        except OSError as error:
            raise DataError(f"{file}: not a readable picture ({error}).") from None
        size = rgb.size if not found else (found[0].shape[1], found[0].shape[0])
        found.append(np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)))
    return np.stack(found)


def _claim(
    out: Path, model: ImageModel, asked: Sequence[Asked], seeds: int, guidance: float | None, layout: str | None
) -> None:
    """Note what the folder is about; refuse a folder that is about something else."""
    text = json.dumps([[one.prompt, one.name] for one in asked])
    facts = {
        "model": model.shape.name,
        "weights": model.shape.weights,
        "prompts": hashlib.sha256(text.encode()).hexdigest()[:16],
        "count": len(asked),
        "seeds": seeds,
        "guidance": guidance,
        "layout": layout,
    }
    file = out / "evaluation.json"
    if file.is_file():
        found = read_json(file)
        for name, value in facts.items():
            if not isinstance(found, dict) or found.get(name) != value:
                before = found.get(name) if isinstance(found, dict) else found
                raise DataError(f"{out}: holds an evaluation with {name} {before}, now it is {value}; choose another --out.")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and holds no evaluation; choose another folder with --out.")
    write_json(file, facts)
