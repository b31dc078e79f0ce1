"""`headscope run`: all steps for any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.console import (
    Batch,
    Device,
    Dtype,
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
    default_out,
    limit_options,
    progress,
    say,
    settle_threads,
)

if TYPE_CHECKING:
    from headscope.models.protocol import ImageModel
    from headscope.pipeline import Settings
    from headscope.pipeline.estimate import Estimate

Out = Annotated[Path | None, typer.Option(help="The run folder (default: runs/ and the model's name).")]


def run(
    model: ModelName,
    out: Out = None,
    prompts: PromptFile = None,
    keep: Keep = None,
    memory: Memory = None,
    batch: Batch = 1,
    keep_of: KeepOf = "all",
    trials: Trials = 40,
    calibration: Annotated[int, typer.Option(min=1, help="Prompts to trace and search on.")] = 16,
    unseen: Annotated[int, typer.Option(min=1, help="Prompts to judge by.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Images generated together while running.")] = 16,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Trace, classify, search, generate and report. Example: headscope run stickers --keep 20% --out runs/stickers"""
    from headscope.pipeline import Settings

    keep, memory = limit_options(keep, memory)
    settings = Settings(
        keep=keep,
        memory=memory,
        batch=batch,
        of=keep_of,
        trials=trials,
        calibration=calibration,
        unseen=unseen,
        quick=quick,
        seed=seed,
        batch_size=batch_size,
    )
    go(model, out or default_out(model), prompts, settings, device, dtype, resume, overwrite)


def go(
    model: str,
    out: Path,
    prompts: Path | None,
    settings: Settings,
    device: str,
    dtype: str | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Run with a progress display, then print the table of methods and where the report is."""
    from headscope.cli.tables import methods_table
    from headscope.pipeline import run as run_all

    check_begin(resume, overwrite)
    settle_threads(model)
    with progress() as tell:
        report = run_all(
            model,
            out,
            prompts=prompts,
            settings=settings,
            device=device,
            dtype=dtype,
            resume=resume,
            overwrite=overwrite,
            announce=_announce,
            progress=tell,
        )
    methods_table(out / "methods.csv", settings.quick)
    say(f"report: {report}")


def _announce(model: ImageModel, estimate: Estimate) -> None:
    shape = model.shape
    say(f"{shape.name}: {shape.layers} layers, {shape.kv_heads} KV heads, {shape.geometry.rows} x {shape.geometry.cols} tokens")
    say(f"all steps take about {estimate.minutes:.1f} minutes and {estimate.nbytes / 2**30:.1f} GiB of memory here")
