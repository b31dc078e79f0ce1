"""`headscope figures`: the heads of a run, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import RunPath, say


def figures(
    run: RunPath,
    statistic: Annotated[list[str] | None, typer.Option(help="Statistics to draw as head maps; `all` for every one.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to show footprints of, such as L7H9,L7H10.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the figures (default: RUN/figures).")] = None,
    kind: Annotated[str, typer.Option("--format", help="png, svg or pdf.")] = "png",
) -> None:
    """Draw head maps, features, decay, footprints and classes. Example: headscope figures runs/stickers --heads L1H0,L5H3"""
    from headscope.reporting import write_figures

    for path in write_figures(run, out, statistics=statistic or (), heads=heads, kind=kind):
        say(str(path))
