"""`headscope search`: find a policy under a byte limit, and measure it on unseen prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.console import (
    Address,
    Batch,
    Device,
    Engine,
    KeepOf,
    Memory,
    Quick,
    Seed,
    Trials,
    WorkerCount,
    default_out,
    errors,
    pasted,
    progress,
    say,
    settle_threads,
    short,
    workers_from,
)
from headscope.cli.settings import LIMIT, SEARCH, limit_from

if TYPE_CHECKING:
    from headscope.pipeline import Run, Workers
    from headscope.tuning import LimitConfig, SearchConfig, Step

RunOrStudy = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `headscope trace`, or a study's TOML file.")]
Keeps = Annotated[str | None, typer.Option(help="Share of the plain cache to keep, such as 20%; or several: 50,30,20,15,10%.")]
MaxLoss = Annotated[float | None, typer.Option(help="In place of a limit: the smallest cache that loses less, nats a token.")]
CacheDtype = Annotated[str | None, typer.Option(help="Of the cache that --memory is for (default: the model's here).")]
Guided = Annotated[bool | None, typer.Option("--guidance/--no-guidance", help="Count two streams, or one (default: as run).")]
Images = Annotated[int | None, typer.Option(min=1, help="Calibration images a trial replays (default: all).")]
Sampler = Annotated[str, typer.Option(help="tpe, gp, cma-es, nsga-ii or random.")]
Prune = Annotated[bool, typer.Option("--prune/--no-prune", help="Give up what is worse, image by image.")]
Buckets = Annotated[int, typer.Option(min=1, help="Most kinds of heads in a layer.")]
TableKind = Annotated[str, typer.Option(help="heads, fisher (by gradients), groups (a class in a layer), coverage; auto.")]
Bits = Annotated[str, typer.Option(help="Bits of a kept number that a head may have, such as 16,8,4.")]
Prompts = Annotated[str, typer.Option(help="by head: some may keep only the prompt's first and last token; whole: none.")]
Score = Annotated[str, typer.Option(help="by head: some may choose by what is usual at a place too; received: none.")]
Options = Annotated[int | None, typer.Option(min=4, help="Options of the table, the most telling first (default: all).")]
TableImages = Annotated[int, typer.Option(min=1, help="Calibration images that the table is measured on.")]
Patience = Annotated[int, typer.Option(min=0, help="End a phase after so many trials without a gain; 0 never.")]
Front = Annotated[bool, typer.Option("--front", help="One study over the limit itself: loss against bytes.")]
Storage = Annotated[str | None, typer.Option(help="SQLite file, *.journal or postgresql://user@host/name (default: in RUN).")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder of a TOML study (default: runs/ and its model).")]


def search(
    run: RunOrStudy,
    keep: Keeps = None,
    memory: Memory = None,
    max_loss: MaxLoss = None,
    batch: Batch = LIMIT.batch,
    dtype: CacheDtype = None,
    guidance: Guided = None,
    keep_of: KeepOf = "all",
    trials: Trials = SEARCH.trials,
    images: Images = SEARCH.images,
    sampler: Sampler = SEARCH.sampler,
    prune: Prune = SEARCH.prune,
    buckets: Buckets = SEARCH.buckets,
    table: TableKind = SEARCH.table,
    table_images: TableImages = SEARCH.table_images,
    bits: Bits = SEARCH.bits,
    prompt: Prompts = SEARCH.prompt,
    score: Score = SEARCH.score,
    options: Options = SEARCH.options,
    patience: Patience = SEARCH.patience,
    front: Front = False,
    storage: Storage = None,
    workers: WorkerCount = 1,
    engine: Engine = "processes",
    address: Address = None,
    out: Out = None,
    quick: Quick = SEARCH.quick,
    seed: Seed = SEARCH.seed,
    device: Device = "auto",
) -> None:
    """Search a policy; the same command goes on after a stop. Example: headscope search runs/stickers --keep 20%"""
    config = SEARCH.replace(
        trials=trials, seed=seed, sampler=sampler, prune=prune, patience=patience, buckets=buckets, images=images,
        table=table, table_images=table_images, bits=bits, prompt=prompt, score=score, options=options, quick=quick,
    )  # fmt: skip
    shared = workers_from(workers, engine, address, storage)
    limited = (keep, memory, max_loss, dtype, guidance, batch, keep_of, front)
    if run.suffix == ".toml":
        if config != SEARCH or limited != (None, None, None, None, None, LIMIT.batch, "all", False):
            raise typer.BadParameter(f"{run}: says limit and search itself; change them there, or name a run folder.")
        _defined(run, out, device, shared)
        return
    _check_loss(max_loss, keep, memory)
    keeps = keep_list(keep)
    if memory is not None and keeps:
        raise typer.BadParameter("give --keep or --memory, not both.")
    streams = None if guidance is None else 1 + guidance
    limit = limit_from(keeps[0] if len(keeps) == 1 else None, memory, keep_of, batch=batch, dtype=dtype, streams=streams)
    opened = _opened(run, device, limit, config)
    if max_loss is not None:
        _smallest(opened, shared, max_loss)
    elif front:
        _front(opened, shared, keeps)
    elif len(keeps) > 1:
        _many(opened, shared, keeps)
    else:
        _one(opened, shared)


def _check_loss(max_loss: float | None, keep: str | None, memory: str | None) -> None:
    if max_loss is None:
        return
    if keep is not None or memory is not None:
        raise typer.BadParameter("give --max-loss, --keep or --memory, one of them.")
    if not max_loss > 0:
        raise typer.BadParameter(f"--max-loss {max_loss:g}: expected more than 0; only the full cache loses nothing.")


def _opened(path: Path, device: str, limit: LimitConfig, config: SearchConfig) -> Run:
    from headscope.pipeline import open_run

    run = open_run(path, device).under(limit, config)
    settle_threads(run.model.name)
    return run


def keep_list(keep: str | None) -> list[str]:
    """`50,30,20,15,10%` -> `50%`, `30%` ...: a unit at the end is for all."""
    parts = [part.strip() for part in (keep or "").split(",") if part.strip()]
    if parts and parts[-1].endswith("%"):
        parts = [part if part.endswith("%") else f"{part}%" for part in parts]
    return parts


def _say_table(search: Path) -> None:
    """What the sensitivity table cost, where there is one."""
    from headscope.storage import read_json

    if found := read_json(search / "search.json").get("sensitivity"):
        say(found["sentence"])


def _one(run: Run, workers: Workers) -> None:
    from headscope.cli.tables import methods_table
    from headscope.models import source_of
    from headscope.pipeline import search_one

    with progress() as tell:
        search_one(run.told(tell), workers=workers)
    folder = run.folder
    _say_table(folder.search)
    methods_table(folder.path / "methods.csv", run.config.search.quick)
    say(f"policy: {folder.policy}")
    model_name = _as_argument(source_of(folder))
    say(f"next: {pasted('headscope', 'generate', model_name, '--policy', folder.policy, '--out', 'images')}")


def _as_argument(source: str) -> str:
    """A model as a command takes it; a folder that lies here and is called as a bundled model stays a folder."""
    name = short(source)
    return name if name == source or os.sep in name else f".{os.sep}{name}"


def _many(run: Run, workers: Workers, keeps: list[str]) -> None:
    from headscope.cli.tables import methods_table
    from headscope.pipeline import SearchPaths, search_many

    with progress() as tell:
        search_many(run.told(tell), keeps, workers)
    every = [SearchPaths.at_share(run.folder, keep) for keep in keeps]
    _say_table(every[0].search)
    for paths in every:
        methods_table(paths.tables / "methods.csv", run.config.search.quick)
        say(f"policy: {paths.policy}")
    say(f"table: {run.folder.path / 'budgets.csv'}")


def _front(run: Run, workers: Workers, keeps: list[str]) -> None:
    from headscope.pipeline import search_front

    with progress() as tell:
        found = search_front(run.told(tell), keeps or ["50%", "30%", "20%", "15%", "10%"], workers.storage)
    for row in found.chosen.itertuples(index=False):
        say(f"{row.keep:>6}  {row.kept_ratio:.1%} kept  unseen KL {row.unseen_kl:.4f}  {row.file}")
    say(f"front: {run.folder.path / 'front.csv'}, {run.folder.path / 'front.svg'}")


def _smallest(run: Run, workers: Workers, max_loss: float) -> None:
    from headscope.pipeline import search_smallest

    def told(step: Step) -> None:
        word = "stays below" if step.good else "does not"
        errors.print(
            f"{step.keep:.1%} kept: {step.calibration:.4f} on calibration images, {step.unseen:.4f} on unseen ones; {word}",
            soft_wrap=True,
        )

    with progress() as tell:
        found, _ = search_smallest(run.told(tell), max_loss, workers, told)
    last = next(step for step in found.steps if step.keep == found.keep)
    say(f"smallest: {found.keep:.1%} of the plain cache; it loses {last.unseen:.4f} nats a token on unseen prompts")
    say("The share was chosen by looking at the unseen prompts too, so this loss is a little better than on others.")
    say(f"policy: {run.folder.policy}")


def _defined(file: Path, out: Path | None, device: str, workers: Workers) -> None:
    from headscope.cli.tables import methods_table
    from headscope.pipeline import run_definition
    from headscope.tuning import read_config

    config = read_config(file)
    settle_threads(config.model)
    with progress() as tell:
        paths = run_definition(config, out or default_out(config.model), device, tell, workers)
    methods_table(paths.tables / "methods.csv", config.search.quick)
    say(f"policy: {paths.policy}")
