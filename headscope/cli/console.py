"""What the commands print: plain lines, one progress display, the options they share.

Nothing here, nor at the top of a verb's file, imports torch or transformers: `--help` and a mistyped option answer at once.
Defaults of the options that records of `headscope.tuning` hold stand in settings.py.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headscope.words import duration

if TYPE_CHECKING:
    from headscope.pipeline import Workers
    from headscope.progress import Progress as Tell

# Arguments that sentences of lower floors name in backticks, and that are options of the same name here.
ARGUMENTS = (
    "out",
    "resume",
    "overwrite",
    "storage",
    "table",
    "batch_size",
    "workers",
    "layers",
    "heads",
    "dtype",
    "model_shape",
    "source",
    "accept_other_weights",
    "prefix",
)
# Columns where there is no terminal to fit into: a table in a file or a pipe comes whole.
WHOLE = 10_000


for _name in ("COLUMNS", "LINES"):  # Rich takes what `isdigit` for a number, a superscript too
    if not (os.environ.get(_name, "1").isdecimal() and int(os.environ.get(_name, "1"))):
        del os.environ[_name]


class Output(Console):
    """Rich's console, which by itself cuts at 80 columns what goes into a file, and takes a reader that left for an error."""

    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal, or what COLUMNS says; else wide enough for everything."""
        found = super().size
        return found if self.file.isatty() or os.environ.get("COLUMNS", "").isdigit() else found._replace(width=WHOLE)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def on_broken_pipe(self) -> None:
        """The reader of our output has gone, `| head` for example, and has what it wanted. Work goes on without notes."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        if not self.stderr:
            raise SystemExit(0)


lines = Output(highlight=False)
errors = Output(stderr=True, highlight=False)

Device = Annotated[str, typer.Option(help="auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16 (default: float32 on a CPU, else bfloat16).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, made by `headscope trace` or `run`.")]
PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A policy file, or a shipped policy by its name.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model, a folder, FILE.py:FUNCTION, or a hub id.")]
Features = Annotated[Path | None, typer.Option(help="Features of captions in safetensors, for a LlamaGen that takes captions.")]
FoldPrefix = Annotated[bool, typer.Option(help="Keep a prefix whose keys are 0, a LlamaGen's caption, as one entry.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
PromptFile = Annotated[
    Path | None,
    typer.Option(help="Text, a prompt a line; JSON lines with a `prompt`; or a folder of *.txt (default: the model's own)."),
]
Keep = Annotated[str | None, typer.Option(help="Share of the plain cache to keep, such as 20%.")]
Memory = Annotated[str | None, typer.Option(help="Bytes to keep, such as 12MiB, for --batch images.")]
Batch = Annotated[int, typer.Option(min=1, help="Images generated together that --memory is for.")]
LimitBatch = Annotated[
    int | None, typer.Option("--batch", min=1, help="Images that --memory is for (default: the policy's own).")
]
KeepOf = Annotated[str, typer.Option(help="What --keep counts: `all` tokens, or those of the `image`.")]
Trials = Annotated[int, typer.Option(min=0, help="Trials of the study.")]
Quick = Annotated[bool, typer.Option("--quick", help="A dry run: no sensitivity table, presets not swept.")]
WorkerCount = Annotated[int, typer.Option(min=1, help="Processes that share the work.")]
Engine = Annotated[str, typer.Option(help="What runs them: processes, or ray.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster (default: one on this machine).")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew: remove what headscope wrote there, nothing else.")]


def say(text: str, style: str | None = None) -> None:
    """One line of output; never wrapped, so that paths can be copied."""
    lines.print(short(as_options(text)), style=style, markup=False, soft_wrap=True)


def say_error(text: str) -> None:
    """What went wrong, on the error stream."""
    errors.print(f"error: {short(as_options(text))}", style="red", markup=False, soft_wrap=True)


def as_options(text: str) -> str:
    """Arguments that lower floors name, as options of the command: "`out`" -> "--out"."""
    return re.sub(rf"`({'|'.join(ARGUMENTS)})`", lambda found: f"--{found[1].replace('_', '-')}", text)


def short(text: str) -> str:
    """Every path under the working folder in `text` as one that counts from there.

    Inside, paths are absolute; a user reads and pastes the shorter ones.
    """
    try:
        here = os.getcwd().rstrip(os.sep) + os.sep
    except OSError:  # somebody has removed it
        return text
    return text if here == os.sep else re.sub(rf"(?<![\w./\\~-]){re.escape(here)}(?=[^\s{re.escape(os.sep)}])", "", text)


def pasted(*words: str | Path) -> str:
    """Words of a command, quoted where a shell needs it."""
    return shlex.join(short(str(word)) for word in words)


def settle_streams() -> None:
    """Let no character end a command: one that a stream's encoding lacks, or that is half of one, is written as its number."""
    for stream in (sys.stdout, sys.stderr):
        settle = getattr(stream, "reconfigure", None)  # what replaces a stream need not be a file
        if settle is not None and stream.errors in ("strict", "surrogateescape"):
            settle(errors="backslashreplace")


@contextmanager
def progress() -> Iterator[Tell]:
    """A display that shows one bar for each kind of work; without a terminal, a line when each begins and when it ends."""
    warnings.filterwarnings("ignore", module="transformers")
    if not errors.is_terminal:
        yield _lines_of_progress()
        return
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

        def tell(task: str, done: int, total: int, note: str = "") -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, note="")
            bars.update(tasks[task], completed=done, total=total, note=note)

        yield tell


def _lines_of_progress() -> Tell:
    """Tells a task's begin, and its end with the time that it took."""
    began: dict[str, float] = {}
    ended: set[str] = set()

    def tell(task: str, done: int, total: int, note: str = "") -> None:
        if task not in began:
            began[task] = time.monotonic()
            errors.print(f"{task} ({total:,}) ...", markup=False, soft_wrap=True)
        if done >= total and task not in ended:
            ended.add(task)
            took = duration(time.monotonic() - began[task])
            errors.print(f"{task}: {total:,} in {took}{f', {note}' if note else ''}", markup=False, soft_wrap=True)

    return tell


def settle_threads(model: str) -> None:
    """One thread for a bundled model: handing over work this small costs more than a second thread saves.

    The demo on two cores: 5.3 minutes with two threads, 4.3 with one (which then also replayed two images fewer). Who sets
    OMP_NUM_THREADS decides otherwise.
    """
    import torch

    from headscope.models import bundled_folder

    if bundled_folder(model) is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def workers_from(count: int, engine: str, address: str | None, storage: str | None = None) -> Workers:
    """Who shares the work.

    Raises:
        typer.BadParameter: an engine that there is not, or a storage for one process only.
    """
    from headscope.pipeline import Workers

    if engine not in ("processes", "ray"):
        raise typer.BadParameter(f"--engine {engine}: expected processes or ray.")
    if count > 1 and storage is not None and not ("://" in storage or storage.endswith(".journal")):
        raise typer.BadParameter(f"--workers {count}: a SQLite file is for one process; name a *.journal or a database URL.")
    return Workers(count, engine, address, storage)


def check_begin(resume: bool, overwrite: bool) -> None:
    """Refuse to go on with a run and to start it anew.

    Raises:
        typer.BadParameter: both.
    """
    if resume and overwrite:
        raise typer.BadParameter("give --resume or --overwrite, not both.")


def dealt(calibration: int, unseen: int) -> str:
    """How many prompts a run has, which are fewer than were asked for where the model brings no more."""
    return f"prompts: {calibration} to trace and search on, {unseen} to judge by"


def default_out(model: str) -> Path:
    """The run folder of a model unless one is named: runs/ and the model's name, of `.` that of the folder."""
    from headscope.models import split_name

    model = split_name(model)[0]
    name = Path(model).name
    return Path("runs") / (Path(model).resolve().name if name in ("", "..") else name)
