"""`headscope trace`: generate images and record what every head looks at; `headscope merge` joins such records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.console import (
    Address,
    Device,
    Dtype,
    Engine,
    Features,
    FoldPrefix,
    ModelName,
    Overwrite,
    PromptFile,
    Resume,
    Seed,
    WorkerCount,
    check_begin,
    dealt,
    pasted,
    progress,
    say,
    settle_threads,
    workers_from,
)
from headscope.cli.settings import BATCH_SIZE, PROMPTS, SEARCH, prompts_from
from headscope.tuning import RunConfig

if TYPE_CHECKING:
    from headscope.tracing import Selection

Numbers = Annotated[str | None, typer.Option(metavar="N,N-M", help="Only these, such as 0,2,5-7 (default: all).")]


def trace(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to make.")],
    prompts: PromptFile = None,
    calibration: Annotated[int, typer.Option(min=1, help="Prompts to trace.")] = PROMPTS.calibration,
    unseen: Annotated[int, typer.Option(min=1, help="Prompts to leave for judging.")] = PROMPTS.unseen,
    batch_size: Annotated[int, typer.Option(min=1, help="Images generated together.")] = BATCH_SIZE,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="Guidance scale, 1 for none (default: the model's).")] = None,
    layers: Numbers = None,
    heads: Numbers = None,
    rows: Annotated[str | None, typer.Option(metavar="A-B", help="Only queries in these rows of the image.")] = None,
    stream: Annotated[str | None, typer.Option(help="conditional or unconditional (default: both).")] = None,
    every: Annotated[int, typer.Option(min=1, help="Ask every n-th query only.")] = 1,
    bands: Annotated[int, typer.Option(min=0, help="Bands of rows that get statistics of their own.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="The full set of statistics, several times slower.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Trace step by step while generating, not afterwards.")] = False,
    policy: Annotated[Path | None, typer.Option(help="Trace through this policy's compressed cache (implies --live).")] = None,
    workers: WorkerCount = 1,
    engine: Engine = "processes",
    address: Address = None,
    seed: Seed = SEARCH.seed,
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
    dtype: Dtype = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Generate images and trace every head. Example: headscope trace stickers --out runs/stickers"""
    from headscope.models import load_model, with_settings
    from headscope.pipeline import begin_run, trace_in_shards, trace_step
    from headscope.policy import load_policy

    model = with_settings(model, features, fold_prefix)
    shared = workers_from(workers, engine, address)
    check_begin(resume, overwrite)
    if workers > 1 and (live or policy is not None):
        raise typer.BadParameter(f"--workers {workers}: live tracing goes with one process; leave one of them out.")
    selection = _selection(layers, heads, rows, stream, every, bands, full)
    config = RunConfig(
        model=model, dtype=dtype, guidance=guidance, seed=seed, batch_size=batch_size,
        prompts=prompts_from(prompts, calibration, unseen),
    )  # fmt: skip
    settle_threads(model)
    loaded = load_model(model, device=device, dtype=dtype)
    selection.check(loaded.shape.layers, loaded.shape.query_heads, loaded.shape.geometry.rows)
    through = None if policy is None else load_policy(policy, loaded.shape)
    run = begin_run(config, out, model=loaded, resume=resume, overwrite=overwrite, limited=False)
    say(dealt(*(len(run.prompts()[part]) for part in ("calibration", "unseen"))))
    with progress() as tell:  # a finished trace is only looked over
        if workers > 1:
            trace_in_shards(run.told(tell), shared, selection=selection)
        else:
            trace_step(run.told(tell), selection=selection, live=live, policy=through)
    say(f"trace: {run.folder.trace}")
    say(f"next: {pasted('headscope', 'heads', out)}")


def merge(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Trace folders, or run folders that hold one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The trace folder to make.")],
) -> None:
    """Join traces of one model. Example: headscope merge runs/a runs/b --out runs/both"""
    from headscope.tracing import merge_traces

    merged = merge_traces([path / "trace" if (path / "run.json").is_file() else path for path in traces], out)
    say(f"trace: {merged.path}, {merged.meta['samples']} images")


def _selection(
    layers: str | None, heads: str | None, rows: str | None, stream: str | None, every: int, bands: int, full: bool
) -> Selection:
    from headscope.tracing import Selection

    streams = Selection().streams if stream is None else (stream,)
    span = None
    if rows is not None:
        numbers = _numbers("--rows", rows)
        span = (numbers[0], numbers[-1] + 1)
    return Selection(
        layers=None if layers is None else _numbers("--layers", layers),
        heads=None if heads is None else _numbers("--heads", heads),
        rows=span,
        streams=streams,
        every=every,
        band_count=bands,
        full=full,
    )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """`0,2,5-7` -> (0, 2, 5, 6, 7)."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and (not last.isdigit() or int(last) < int(first))):
            raise typer.BadParameter(f"{option} {text}: expected numbers and ranges such as 0,2,5-7.")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))
