"""`headscope run`: all steps for any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope import words
from headscope.cli.console import (
    Batch,
    Device,
    Dtype,
    Features,
    FoldPrefix,
    Keep,
    KeepOf,
    Memory,
    ModelName,
    Overwrite,
    PromptFile,
    Quick,
    Resume,
    Seed,
    Trials,
    check_begin,
    dealt,
    default_out,
    progress,
    say,
    settle_threads,
)
from headscope.cli.settings import BATCH_SIZE, LIMIT, PROMPTS, SEARCH, limit_from, prompts_from
from headscope.tuning import RunConfig

if TYPE_CHECKING:
    from headscope.models import ImageModel
    from headscope.pipeline import Estimate

Out = Annotated[Path | None, typer.Option("--out", "-o", help="The run folder (default: runs/ and the model's name).")]


def run(
    model: ModelName,
    out: Out = None,
    prompts: PromptFile = None,
    keep: Keep = None,
    memory: Memory = None,
    batch: Batch = LIMIT.batch,
    keep_of: KeepOf = "all",
    trials: Trials = SEARCH.trials,
    calibration: Annotated[int, typer.Option(min=1, help="Prompts to trace and search on.")] = PROMPTS.calibration,
    unseen: Annotated[int, typer.Option(min=1, help="Prompts to judge by.")] = PROMPTS.unseen,
    batch_size: Annotated[int, typer.Option(min=1, help="Images generated together while running.")] = BATCH_SIZE,
    quick: Quick = SEARCH.quick,
    seed: Seed = SEARCH.seed,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
    dtype: Dtype = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Trace, classify, search, generate and report. Example: headscope run stickers --keep 20% --out runs/stickers"""
    from headscope.models import with_settings

    model = with_settings(model, features, fold_prefix)
    config = RunConfig(
        model=model,
        dtype=dtype,
        seed=seed,
        batch_size=batch_size,
        limit=limit_from(keep, memory, keep_of, batch=batch),
        prompts=prompts_from(prompts, calibration, unseen),
        search=SEARCH.replace(trials=trials, quick=quick, seed=seed),
    )
    go(config, out or default_out(model), device=device, resume=resume, overwrite=overwrite)


def go(config: RunConfig, out: Path, *, device: str, resume: bool, overwrite: bool) -> None:
    """Run with a progress display, then print the table of methods and where the report is."""
    from headscope.cli.tables import methods_table
    from headscope.pipeline import run as run_all

    check_begin(resume, overwrite)
    settle_threads(config.model)
    with progress() as tell:
        report = run_all(config, out, device=device, resume=resume, overwrite=overwrite, announce=_announce, progress=tell)
    methods_table(out / "methods.csv", config.search.quick)
    say(f"report: {report}")


def _announce(model: ImageModel, estimate: Estimate) -> None:
    shape = model.shape
    say(f"{shape.name}: {shape.layers} layers, {shape.kv_heads} KV heads, {shape.geometry.rows} x {shape.geometry.cols} tokens")
    say(dealt(estimate.calibration, estimate.unseen))
    say(f"all steps take about {words.duration(60 * estimate.minutes)} and {words.size(estimate.needs.nbytes)} of memory here")
    say(estimate.needs.sentence())
