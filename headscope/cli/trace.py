"""`headscope trace`: draw pictures and record what every head looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Device, Dtype, ModelName, Overwrite, PromptFile, Resume, Seed, progress, say, settle_threads


def trace(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    prompts: PromptFile = None,
    calibration: Annotated[int, typer.Option(min=1, help="Prompts to trace.")] = 16,
    unseen: Annotated[int, typer.Option(min=1, help="Prompts to leave for judging.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn together.")] = 16,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures and trace every head. Example: headscope trace stickers --out runs/stickers"""
    from headscope.models import load_model
    from headscope.pipeline import RunFolder, Settings
    from headscope.pipeline.prompts import default_prompts, read_prompts, split
    from headscope.pipeline.run import read_prompts_of
    from headscope.pipeline.steps import begin, trace_step

    texts = default_prompts(model) if prompts is None else read_prompts(prompts)
    settings = Settings(keep=None, calibration=calibration, unseen=unseen, seed=seed, batch_size=batch_size)
    settle_threads(model)
    loaded = load_model(model, device=device, dtype=dtype)
    folder = RunFolder(out)
    parts = split(texts, calibration, unseen)
    begin(loaded, model, folder, parts, settings, resume=resume, overwrite=overwrite)
    with progress() as tell:  # a finished trace is only looked over
        trace_step(loaded, folder, read_prompts_of(folder)["calibration"], settings, tell)
    say(f"trace: {folder.trace}")
    say(f"next: headscope heads {out}")
