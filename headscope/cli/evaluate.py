"""`headscope evaluate`: what became of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli.console import Device, Dtype, Features, FoldPrefix, ModelName, WorkerCount, progress, say, settle_threads

if TYPE_CHECKING:
    import pandas as pd

    from headscope.evaluation import Evaluation
    from headscope.models import ImageModel
    from headscope.policy import ModelShape, Policy
    from headscope.prompt_files import Asked
    from headscope.stickereval import GradingPrompt


def evaluate(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images and tables; the same command goes on there.")],
    policy: Annotated[list[Path] | None, typer.Option(help="A policy file; give it again for more.")] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A run folder: its policy and presets, named METHOD-BUDGET; again for more.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines, text, or a folder of text files (default: StickerEval's).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Images a prompt.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts, evenly from the file.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of real images (PNG), for the distances.")] = None,
    layout: Annotated[str | None, typer.Option(help="geneval or dpg: folders that those scorers read.")] = None,
    results: Annotated[Path | None, typer.Option("--import", help="JSON lines of another scorer, beside ours.")] = None,
    memory: Annotated[str, typer.Option(help="Bytes for the caches, such as 2GiB; the workers share them.")] = "2GiB",
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (default: the model's).")] = None,
    workers: WorkerCount = 1,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    floor: Annotated[bool, typer.Option(help="Generate with the full cache in the other dtype too, as a floor.")] = True,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Images of the full cache and of each policy, compared. Example: headscope evaluate stickers-scenes --policy P --out E"""
    from headscope.errors import DataError
    from headscope.evaluation import LAYOUTS, EvaluationConfig, evaluate as measure, need_packages, read_results
    from headscope.models import load_model, with_settings
    from headscope.pipeline import GenerateInProcesses, Workers
    from headscope.policy import parse_size
    from headscope.reporting import write_evaluation
    from headscope.runtime import FULL, OTHER_SEED

    model = with_settings(model, features, fold_prefix)
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"--layout {layout}: unknown; known are {', '.join(LAYOUTS)}.")
    need_packages("headscope evaluate")
    settle_threads(model)
    loaded, asked, grading = _model_and_prompts(model, prompts, limit, layout, device, dtype)
    policies = _policies(policy or (), run or (), loaded.shape)
    other = "bfloat16" if str(loaded.dtype) == "torch.float32" else "float32"
    names = [FULL, OTHER_SEED, *([f"{FULL}_{other}"] if floor else []), *policies]
    # What is wrong with it is told before anything is generated.
    imported = None if results is None else read_results(results, names, len(asked), seeds)
    if grading is None and layout is None:
        say("not graded: StickerEval grades its own kinds of prompts, of a model of 96 x 96 pixels.")
    config = EvaluationConfig(seeds, guidance, grading, real, layout, parse_size(memory) // workers)
    with progress() as tell:
        generators = GenerateInProcesses(model, device, Workers(workers), tell)
        found = measure(
            loaded, asked, policies, out, config,
            other_dtype=(lambda: load_model(model, device=device, dtype=other)) if floor else None,
            generators=generators if workers > 1 else None,
            progress=tell,
        )  # fmt: skip
    if imported is not None:
        _imported(imported, out, len(asked) * seeds)
    _found(found)
    say(f"report: {write_evaluation(out)}")


def _model_and_prompts(
    name: str, prompts: Path | None, limit: int | None, layout: str | None, device: str, dtype: str | None
) -> tuple[ImageModel, list[Asked], list[GradingPrompt] | None]:
    """The model, the prompts (evenly from the file where `limit` is less), and what StickerEval is to find, if it can."""
    from headscope.errors import DataError
    from headscope.models import load_model
    from headscope.prompt_files import read_asked
    from headscope.stickereval import PROMPTS, grading_if_ours

    asked = read_asked(prompts or PROMPTS)
    grading = None if layout is not None else grading_if_ours(asked)
    model = load_model(name, device=device, dtype=dtype)
    if grading is not None and model.to_images is not None and _side(model) != 96:
        if prompts is None:
            raise DataError(f"{name}: its images are not 96 x 96, which StickerEval grades; name a file with --prompts.")
        grading = None
    if limit is not None and limit < len(asked):
        chosen = [round(n * (len(asked) - 1) / max(limit - 1, 1)) for n in range(limit)]
        asked = [asked[n] for n in chosen]
        grading = None if grading is None else [grading[n] for n in chosen]
    return model, asked, grading


def _policies(files: Sequence[Path], runs: Sequence[Path], shape: ModelShape) -> dict[str, Policy]:
    """By name: those of the files, and those of the runs."""
    from headscope.errors import DataError
    from headscope.evaluation import policies_of
    from headscope.policy import load_policy

    policies = {file.stem: load_policy(file, shape) for file in files}
    if len(policies) != len(files):
        twice = next(file.stem for file in files if [other.stem for other in files].count(file.stem) > 1)
        raise DataError(f"--policy: two files are called {twice}, and the table tells them apart by name; rename one.")
    for folder in runs:
        found = policies_of(folder, shape)
        if both := policies.keys() & found.keys():
            raise DataError(f"{folder}: has a policy called {sorted(both)[0]}, as one given before; evaluate them apart.")
        policies |= found
    return policies


def _imported(imported: pd.DataFrame, out: Path, images: int) -> None:
    """Write and print another scorer's results; `images`: of each variant."""
    from headscope.cli.tables import print_table
    from headscope.storage import write_csv

    write_csv(imported, out / "imported.csv")
    for row in imported[imported["category"] == "overall"].to_dict("records"):
        if 0 < row["images"] < images:
            say(f"imported: {row['variant']} has scores of {row['images']:,} of its {images:,} images only.")
    print_table(imported.pivot_table(index="variant", columns="category", values="score", sort=False).reset_index())


def _found(found: Evaluation) -> None:
    """Print likeness and scores."""
    from headscope.cli.tables import print_table

    sizes = [f"{value / 1024:,.0f}" if value == value else "" for value in found.likeness["cache_bytes"]]
    print_table(
        found.likeness.assign(cache_bytes=sizes)
        .drop(columns=["kernel_spread", "same"], errors="ignore")
        .rename(columns={"cache_bytes": "KiB", "agreement": "tokens", "seconds": "s"})
    )
    if len(found.scores):
        order = list(dict.fromkeys(found.scores["category"]))
        wide = found.scores.pivot(index="variant", columns="category", values="score").reindex(found.likeness["variant"])[order]
        overall = found.scores[found.scores["category"] == "overall"].set_index("variant")
        wide["paired, 95 %"] = [
            f"{overall.loc[v, 'difference_low']:+.2f} {overall.loc[v, 'difference_high']:+.2f}" for v in wide.index
        ]
        print_table(wide.reset_index())
        say("StickerEval; last, the 95 % interval of the overall score's paired difference to the full cache.")


def _side(model: Any) -> int:
    import torch

    return int(model.to_images(torch.zeros(1, model.shape.geometry.tokens, dtype=torch.int64)).shape[1])
