"""What the commands print: plain lines, one progress display, the options they share.

Nothing here, nor at the top of a verb's file, imports torch or transformers: `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from headscope.pipeline.steps import Progress as Tell

lines = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16 (default: float32 on a CPU, else bfloat16).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, made by `headscope trace` or `run`.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model, a folder, or a hub id.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
PromptFile = Annotated[
    Path | None,
    typer.Option(help="Text file with one prompt a line, or JSON lines with a `prompt` (default: the model's own)."),
]
Keep = Annotated[str | None, typer.Option(help="Share of the plain cache to keep, such as 20%.")]
Memory = Annotated[str | None, typer.Option(help="Bytes to keep, such as 12MiB, for --batch pictures.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures drawn together that --memory is for.")]
KeepOf = Annotated[str, typer.Option(help="What --keep counts: `all` tokens, or those of the `image`.")]
Trials = Annotated[int, typer.Option(min=1, help="Trials of the study.")]
Quick = Annotated[bool, typer.Option("--quick", help="A dry run: no sensitivity table, presets not swept.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that share the work.")]
Engine = Annotated[str, typer.Option(help="What runs them: processes, or ray.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster (default: one on this machine).")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that the folder holds, and start anew.")]


def say(text: str, style: str | None = None) -> None:
    """One line of output; never wrapped, so that paths can be copied."""
    lines.print(text, style=style, markup=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Tell]:
    """A display that shows one bar for each kind of work."""
    warnings.filterwarnings("ignore", module="transformers")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int, least: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note="")
            note = "" if not math.isfinite(least) else f"least KL {least:.4f}"
            bars.update(tasks[what], completed=done, total=total, note=note)

        yield tell


def settle_threads(model: str) -> None:
    """One thread for a bundled model: handing over work this small costs more than a second thread saves.

    The demo on two cores: 5.3 minutes with two threads, 4.3 with one (which then also replayed two pictures fewer). Who sets
    OMP_NUM_THREADS decides otherwise.
    """
    import torch

    from headscope.models.registry import bundled_folder

    if bundled_folder(model) is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_engine(engine: str) -> None:
    """Refuse an engine that there is not.

    Raises:
        typer.BadParameter: see above.
    """
    if engine not in ("processes", "ray"):
        raise typer.BadParameter(f"--engine {engine}: expected processes or ray.")


def limit_options(keep: str | None, memory: str | None) -> tuple[str | None, str | None]:
    """`--keep` or `--memory`, 20 % where neither is given.

    Raises:
        typer.BadParameter: both.
    """
    if keep is not None and memory is not None:
        raise typer.BadParameter("give --keep or --memory, not both.")
    return (None, memory) if memory is not None else (keep or "20%", None)
