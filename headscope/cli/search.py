"""`headscope search`: find a policy under a byte limit, and measure it on unseen prompts."""

from __future__ import annotations

import os
from dataclasses import replace
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
    Workers,
    check_engine,
    default_out,
    errors,
    limit_options,
    pasted,
    progress,
    say,
    settle_threads,
    short,
)

if TYPE_CHECKING:
    from headscope.models.protocol import ImageModel
    from headscope.pipeline import Settings
    from headscope.pipeline.settings import Crew
    from headscope.run_folder import RunFolder
    from headscope.tuning.smallest import Step

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def search(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `headscope trace`, or a study's TOML file.")],
    keep: Annotated[
        str | None, typer.Option(help="Share of the plain cache to keep, such as 20%; or several: 50,30,20,15,10%.")
    ] = None,
    memory: Memory = None,
    max_loss: Annotated[
        float | None, typer.Option(help="In place of a limit: the smallest cache that loses less, in nats a token.")
    ] = None,
    batch: Batch = 1,
    dtype: Annotated[str | None, typer.Option(help="Of the cache that the limit is for (default: the model's here).")] = None,
    guidance: Annotated[
        bool | None, typer.Option("--guidance/--no-guidance", help="Whether the limit holds two streams (default: as run).")
    ] = None,
    keep_of: KeepOf = "all",
    trials: Trials = 40,
    images: Annotated[int | None, typer.Option(min=1, help="Calibration images a trial replays (default: all).")] = None,
    sampler: Annotated[str, typer.Option(help="tpe, gp, cma-es, nsga-ii or random.")] = "tpe",
    prune: Annotated[bool, typer.Option("--prune/--no-prune", help="Give up what is worse, image by image.")] = True,
    buckets: Annotated[int, typer.Option(min=1, help="Most kinds of heads in a layer.")] = 3,
    table: Annotated[
        str, typer.Option(help="Sensitivity of heads, of groups (class by layer), or by the trace's coverage; auto by size.")
    ] = "auto",
    patience: Annotated[int, typer.Option(min=0, help="End a phase after so many trials without a gain; 0 never.")] = 30,
    front: Annotated[bool, typer.Option("--front", help="One study over the limit itself: loss against bytes.")] = False,
    storage: Annotated[
        str | None, typer.Option(help="SQLite file, *.journal or postgresql://user@host/name (default: in RUN).")
    ] = None,
    workers: Workers = 1,
    engine: Engine = "processes",
    address: Address = None,
    out: Annotated[Path | None, typer.Option(help="Run folder of a TOML study (default: runs/ and its model).")] = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Search a policy; the same command goes on after a stop. Example: headscope search runs/stickers --keep 20%"""
    from headscope.pipeline import open_run, settings_of
    from headscope.pipeline.settings import Crew
    from headscope.tuning.measure.table import KINDS
    from headscope.tuning.propose.samplers import SAMPLERS
    from headscope.tuning.study.storage import shared

    check_engine(engine)
    if sampler not in SAMPLERS:
        raise typer.BadParameter(f"--sampler {sampler}: expected one of {', '.join(SAMPLERS)}.")
    if table not in KINDS:
        raise typer.BadParameter(f"--table {table}: expected one of {', '.join(KINDS)}.")
    if workers > 1 and storage is not None and not shared(storage):
        raise typer.BadParameter(f"--workers {workers}: a SQLite file is for one process; name a *.journal or a database URL.")
    crew = Crew(storage, workers, engine, address)
    if run.suffix == ".toml":
        _defined(run, out, device, crew)
        return
    if max_loss is not None and (keep is not None or memory is not None):
        raise typer.BadParameter("give --max-loss, --keep or --memory, one of them.")
    if max_loss is not None and not max_loss > 0:
        raise typer.BadParameter(f"--max-loss {max_loss:g}: expected more than 0; only the full cache loses nothing.")
    keeps = keep_list(keep)
    single, memory = limit_options(keeps[0] if len(keeps) == 1 else None, memory)
    model, folder = open_run(run, device)
    settle_threads(model.name)
    settings = settings_of(folder, keep=single, memory=memory, batch=batch, of=keep_of, trials=trials, quick=quick, seed=seed)
    settings = replace(
        settings,
        searched_images=images or settings.calibration,
        table_images=max(settings.table_images, min(8, images or settings.calibration)),
        sampler=sampler,
        prune=prune,
        buckets=buckets,
        table=table,
        patience=patience or None,
        limit_dtype=None if dtype is None else DTYPES.get(dtype, dtype),
        limit_guidance=guidance,
    )
    if max_loss is not None:
        _smallest(model, folder, max_loss, settings, crew)
    elif front:
        _front(model, folder, keeps, settings, crew)
    elif len(keeps) > 1:
        _many(model, folder, keeps, settings, crew)
    else:
        _one(model, folder, settings, crew)


def _say_table(search: Path) -> None:
    """What the sensitivity table cost, where there is one."""
    from headscope.storage import read_json

    if found := read_json(search / "search.json").get("sensitivity"):
        say(found["sentence"])


def keep_list(keep: str | None) -> list[str]:
    """`50,30,20,15,10%` -> `50%`, `30%` ...: a unit at the end is for all."""
    parts = [part.strip() for part in (keep or "").split(",") if part.strip()]
    if parts and parts[-1].endswith("%"):
        parts = [part if part.endswith("%") else f"{part}%" for part in parts]
    return parts


def _one(model: ImageModel, folder: RunFolder, settings: Settings, crew: Crew) -> None:
    from headscope.cli.tables import methods_table
    from headscope.models.registry import source_of
    from headscope.pipeline.searching import search_one

    with progress() as tell:
        search_one(model, folder, settings, tell, crew=crew)
    _say_table(folder.search)
    methods_table(folder.path / "methods.csv", settings.quick)
    say(f"policy: {folder.policy}")
    model_name = _as_argument(source_of(folder))
    say(f"next: {pasted('headscope', 'generate', model_name, '--policy', folder.policy, '--out', 'images')}")


def _as_argument(source: str) -> str:
    """A model as a command takes it; a folder that lies here and is called as a bundled model stays a folder."""
    name = short(source)
    return name if name == source or os.sep in name else f".{os.sep}{name}"


def _many(model: ImageModel, folder: RunFolder, keeps: list[str], settings: Settings, crew: Crew) -> None:
    from headscope.cli.tables import methods_table
    from headscope.pipeline.searching import place_of, search_many

    with progress() as tell:
        search_many(model, folder, keeps, settings, tell, crew)
    _say_table(place_of(folder, keeps[0]).search)
    for keep in keeps:
        methods_table(place_of(folder, keep).search / "methods.csv", settings.quick)
        say(f"policy: {place_of(folder, keep).policy}")
    say(f"table: {folder.path / 'budgets.csv'}")


def _front(model: ImageModel, folder: RunFolder, keeps: list[str], settings: Settings, crew: Crew) -> None:
    from headscope.pipeline.fronts import search_front

    with progress() as tell:
        found = search_front(model, folder, keeps or ["50%", "30%", "20%", "15%", "10%"], settings, tell, crew)
    for row in found.chosen.itertuples(index=False):
        say(f"{row.keep:>6}  {row.kept_ratio:.1%} kept  unseen KL {row.unseen_kl:.4f}  {row.file}")
    say(f"front: {folder.path / 'front.csv'}, {folder.path / 'front.svg'}")


def _smallest(model: ImageModel, folder: RunFolder, max_loss: float, settings: Settings, crew: Crew) -> None:
    from headscope.pipeline.searching import search_smallest

    def told(step: Step) -> None:
        word = "stays below" if step.good else "does not"
        errors.print(
            f"{step.keep:.1%} kept: {step.calibration:.4f} on calibration images, {step.unseen:.4f} on unseen ones; {word}",
            soft_wrap=True,
        )

    with progress() as tell:
        found, _ = search_smallest(model, folder, max_loss, settings, tell, crew, told)
    last = next(step for step in found.steps if step.keep == found.keep)
    say(f"smallest: {found.keep:.1%} of the plain cache; it loses {last.unseen:.4f} nats a token on unseen prompts")
    say("The share was chosen by looking at the unseen prompts too, so this loss is a little better than on others.")
    say(f"policy: {folder.policy}")


def _defined(file: Path, out: Path | None, device: str, crew: Crew) -> None:
    from headscope.cli.tables import methods_table
    from headscope.pipeline.searching import run_definition
    from headscope.tuning.definition import read_definition

    definition = read_definition(file)
    settle_threads(definition.model)
    with progress() as tell:
        policy, place = run_definition(definition, out or default_out(definition.model), device, tell, crew)
    methods_table(place.search / "methods.csv")
    say(f"policy: {policy}")
