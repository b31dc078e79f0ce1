"""`headscope demo`: the whole job on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Device, Overwrite, Resume, Seed, Trials
from headscope.cli.run import go
from headscope.cli.settings import SEARCH
from headscope.tuning import RunConfig

# Fewer images, options and trials than a search takes by default: a laptop is through in minutes.
SEARCHED, TABLE_IMAGES, OPTIONS, TRIALS = 6, 4, 24, 20


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder.")] = Path("runs/demo"),
    trials: Trials = TRIALS,
    seed: Seed = SEARCH.seed,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The whole job on the bundled model, offline. Example: headscope demo --out runs/demo"""
    config = RunConfig(
        model="stickers",
        seed=seed,
        search=SEARCH.replace(trials=trials, seed=seed, images=SEARCHED, table_images=TABLE_IMAGES, options=OPTIONS),
    )
    go(config, out, device=device, resume=resume, overwrite=overwrite)
