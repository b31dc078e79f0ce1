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

from headscope.errors import CacheError, DataError
from headscope.evaluation.layouts import check_layout
from headscope.evaluation.measuring import Measured, Measurer
from headscope.facts import OBJECT, check, optional
from headscope.models.protocol import ImageModel
from headscope.models.tokens import warn_of_unknown_words
from headscope.policy import Policy
from headscope.prompt_files import Asked
from headscope.runtime.batches import FULL, OTHER, OTHER_SEED, Variant, batch_for, batches_to_draw, draw_variant, seconds_of
from headscope.runtime.cache import check_prefix
from headscope.runtime.generate import check_settings
from headscope.samples import Samples
from headscope.stickereval.grader import category_scores, paired_difference
from headscope.stickereval.prompts import GradingPrompt
from headscope.storage import read_json, write_json, write_whole

MEMORY = 2 * 2**30
_TO_REAL = ("kernel", "kernel_spread", "frechet")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """A batch of pictures to draw into `folder`; `dtype` is what the model is to be loaded in."""

    variant: Variant
    dtype: str
    folder: Path
    numbers: list[int]


# Draws tasks: (tasks, prompts, seeds a prompt, guidance).
Drawers = Callable[[Sequence[Task], Sequence[str], int, float | None], None]


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
    drawers: Drawers | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate policies; the same call continues in `out` after a stop, and draws and measures no picture twice.

    Args:
        asked: the prompts. grading: what StickerEval is to find in each (one a prompt), or None.
        policies: by name; `full`, and the floors `other_seed` and `full_bfloat16` (or float32) stand beside them.
        other_dtype: loads the same model in the other dtype, for that floor.
        real: folder of PNG files, for the distances. layout: "geneval" or "dpg" folders in place of plain ones.
        memory: bytes for the caches of a batch.
        drawers: draws what is missing before this process does, in others say; `other_dtype` is then bfloat16 beside float32,
            or float32.

    Raises:
        DataError: `out` holds an evaluation of something else, or a prompt, a policy or a picture that cannot be used.
    """
    out = Path(out)
    variants = [Variant(FULL), Variant(OTHER_SEED, first_seed=Variant(FULL).first_seed + OTHER)]
    if taken := {FULL, OTHER_SEED, *(f"{FULL}_{dtype}" for dtype in ("bfloat16", "float16", "float32"))} & set(policies):
        raise DataError(f"policy name {sorted(taken)[0]}: is that of a row that every table has; name the file otherwise.")
    check_layout(layout, asked, seeds)
    if real is not None and len(asked) * seeds < 2:
        raise DataError("--real: a distance needs at least two pictures on each side; give more prompts or --seeds.")
    variants += [Variant(name, policy) for name, policy in policies.items()]
    others = None if real is None else _real(Path(real))  # what cannot be read is told before anything is drawn
    prompts = [one.prompt for one in asked]
    encoded = model.encode(prompts)
    scale = model.guidance if guidance is None else guidance
    check_settings(scale, model.temperature, model.top_k, model.vocabulary)
    _check_lengths(policies, prompts, encoded.mask.sum(1))
    streams = 1 if scale == 1.0 else 2
    batch = batch_for(model, variants, encoded.ids.shape[1], streams, memory)
    _claim(out, model, asked, seeds, guidance, layout)  # after all that can be wrong with what was asked
    _claim_names(out, policies)
    warn_of_unknown_words(model, prompts)
    if drawers is not None:
        total, dtype = len(prompts) * seeds, str(model.dtype).removeprefix("torch.")
        wanted = [(variant, dtype, variant.name) for variant in variants]
        if other_dtype is not None:
            floor = "bfloat16" if dtype == "float32" else "float32"
            wanted.append((Variant(FULL), floor, f"{FULL}_{floor}"))
        folders = [(variant, its, out / "tokens" / name) for variant, its, name in wanted]
        tasks = [Task(*one, numbers) for one in folders for numbers in batches_to_draw(one[2], total, batch)]
        drawers(tasks, prompts, seeds, guidance)
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
    measurer = Measurer(model, drawn[FULL], asked, out, seeds, grading, others, layout)
    measured: dict[str, Measured] = {}
    for name in names:
        measured[name] = measurer.measure(name, drawn[name])
        if progress is not None:
            progress("measuring", len(measured), len(names))
    seconds = {name: seconds_of(out / "tokens" / name) for name in names}
    return _written(out, measured, sizes, seconds)


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
    graded = {name: one.pictures for name, one in measured.items() if "tag" in one.pictures}
    pictures = pd.concat([one.pictures for one in measured.values()], ignore_index=True)
    found = Evaluation(pictures, pd.DataFrame(rows), _scores(graded), pd.DataFrame(by_row))
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


def _real(folder: Path) -> np.ndarray:
    """All PNG files below a folder, uint8 [n, height, width, 3], brought to the size of the first."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give --real one with at least two real pictures (PNG).")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")
    if len(files) < 2:
        raise DataError(f"{folder}: found {len(files)} PNG files, expected a folder with at least two real pictures.")
    found: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                rgb = picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # so Pillow says it
            raise DataError(f"{file}: not a readable picture ({error}).") from None
        size = rgb.size if not found else (found[0].shape[1], found[0].shape[0])
        found.append(np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)))
    return np.stack(found)


def _check_lengths(policies: Mapping[str, Policy], prompts: Sequence[str], lengths: torch.Tensor) -> None:
    """Refuse a prompt that is too long for a policy before anything is drawn."""
    longest = int(lengths.argmax())
    for name, policy in policies.items():
        try:
            check_prefix(policy, int(lengths[longest]), prompts[longest])
        except CacheError as error:
            raise DataError(f"policy {name}: {error}") from None


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
        "guidance": model.guidance if guidance is None else guidance,
        "layout": layout,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    file = out / "evaluation.json"
    if file.is_file():
        found = _facts(file)
        if found.get("prompts") != facts["prompts"]:
            raise DataError(f"{out}: holds an evaluation of other prompts (or another --limit); choose another --out.")
        if found.get("guidance") is None:  # the model's own, as earlier versions wrote it
            found["guidance"] = model.guidance
        for name, value in facts.items():
            if found.get(name) != value:
                before = found.get(name)
                raise DataError(f"{out}: holds an evaluation with {name} {before}, now it is {value}; choose another --out.")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and holds no evaluation; choose another folder with --out.")
    write_json(file, facts)


def _claim_names(out: Path, policies: Mapping[str, Policy]) -> None:
    """Note which policy each name stands for, so that its pictures are not taken for those of another one of that name."""
    file = out / "evaluation.json"
    facts = _facts(file)
    before = check(facts, {"policies": optional(OBJECT)}, str(file), advice="choose another --out").get("policies", {})
    given = {name: policy.fingerprint() for name, policy in policies.items()}
    if other := [name for name, digest in given.items() if before.get(name, digest) != digest]:
        raise DataError(
            f"{out}: holds pictures of another policy called {other[0]}; give the file another name, or choose another --out."
        )
    if not before.keys() >= given.keys():
        write_json(file, {**facts, "policies": {**before, **given}})


def _facts(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except DataError as error:
        raise DataError(f"{error} What {file.parent} is an evaluation of is not known; choose another --out.") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: holds no facts of an evaluation; choose another --out.")
    return found
