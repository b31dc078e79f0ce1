"""`headscope demo`: the whole job on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Overwrite, Resume, Seed, Trials
from headscope.cli.run import go


def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    trials: Trials = 40,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The whole job on the bundled model, offline. Example: headscope demo --out runs/demo"""
    from headscope.pipeline import Settings

    go("stickers", out, None, Settings(trials=trials, seed=seed), "auto", None, resume, overwrite)
