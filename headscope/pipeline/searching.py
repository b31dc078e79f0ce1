"""Searches on top of a run: several limits at once, the smallest cache for a loss, a front, a study definition, a crew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from headscope.errors import BudgetError, DataError
from headscope.models import load_model
from headscope.models.protocol import ImageModel
from headscope.pipeline.limits import counted_for, limit_of
from headscope.pipeline.prompts import default_prompts, read_prompts, split
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.run import begin, read_prompts_of
from headscope.pipeline.settings import Crew, Place, Progress, Settings
from headscope.pipeline.steps import compare_step, heads_step, search_step, trace_step
from headscope.pipeline.tables import table_of
from headscope.pipeline.workers import joined
from headscope.policy.files import load_policy, save_policy
from headscope.policy.footprint import parse_share
from headscope.policy.policy import Policy
from headscope.policy.presets import make_preset
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.storage import read_table, write_whole
from headscope.tuning import Replay, study_replay
from headscope.tuning.definition import Definition
from headscope.tuning.measure.options import losses_from
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.smallest import Smallest, Step, smallest


def place_of(folder: RunFolder, keep: str) -> Place:
    """Where a search for one share of several keeps its files: search/keep-20/ and policies/keep-20.safetensors."""
    name = f"keep-{100 * parse_share(keep):g}"  # 20% and 0.2 are the same share
    return Place(folder.search / name, folder.path / "policies" / f"{name}.safetensors")


def search_one(
    model: ImageModel,
    folder: RunFolder,
    settings: Settings,
    progress: Progress | None = None,
    *,
    place: Place | None = None,
    crew: Crew | None = None,
) -> Policy:
    """Search under one limit, with as many processes as `crew` says, and compare on unseen prompts."""
    here = place or Place(folder.search, folder.policy)
    crew = _with_storage(crew or Crew(), here)
    with ExitStack() as stack:
        call = partial(stack.enter_context, joined(model, folder, settings, here, crew))
        search_step(model, folder, settings, progress, place=place, crew=crew, ready=call if crew.workers > 1 else None)
    compare_step(model, folder, read_prompts_of(folder)["unseen"], settings, progress, place=place)
    return load_policy(here.policy, model.shape)


def _with_storage(crew: Crew, here: Place) -> Crew:
    if crew.workers > 1 and crew.storage is None:
        return replace(crew, storage=str(here.search / "study.journal"))
    return crew


def search_many(
    model: ImageModel,
    folder: RunFolder,
    keeps: Sequence[str],
    settings: Settings,
    progress: Progress | None = None,
    crew: Crew | None = None,
) -> pd.DataFrame:
    """Search under several shares of the cache: policies/keep-50.safetensors and so on, budgets.csv of all methods."""
    limits = [limit_of(model, replace(settings, keep=keep), int(folder.read()["prefix"])) for keep in keeps]
    assert limits  # every share is checked before the first search begins
    tables = []
    for keep in keeps:
        place = place_of(folder, keep)
        search_one(model, folder, replace(settings, keep=keep, memory=None), progress, place=place, crew=crew)
        tables.append(read_table(place.search / "methods.csv"))
        table = pd.concat(tables, ignore_index=True)
        write_whole(folder.path / "budgets.csv", partial(_to_csv, table))
    return table


def _to_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def search_smallest(
    model: ImageModel,
    folder: RunFolder,
    max_loss: float,
    settings: Settings,
    progress: Progress | None = None,
    crew: Crew | None = None,
    told: Callable[[Step], None] | None = None,
) -> tuple[Smallest, Policy]:
    """The smallest cache whose loss stays below `max_loss` on the calibration images and on unseen prompts.

    The policy is policy.safetensors, the steps are smallest.csv.
    """
    prefix = int(folder.read()["prefix"])
    samples = Samples.load(folder.samples)
    judge = unseen_images(model, folder, read_prompts_of(folder)["unseen"], settings, progress)
    unseen = Replay(model, judge, by_stream=False)
    table = table_of(model, folder, samples, settings, progress)
    losses = losses_from(table.losses, model.shape.layers, model.shape.kv_heads, model.shape.geometry)
    calibration = study_replay(model, samples.select(range(min(settings.searched_images, len(samples)))))
    found: dict[float, Policy] = {}

    def under(share: float) -> Settings:
        return replace(settings, keep=f"{100 * share:.3f}%", memory=None)

    def solved(share: float) -> float:
        best = float("inf")
        try:
            limit = limit_of(model, under(share), prefix)
            strides = fitting_strides(limit, settings.strides)
        except BudgetError:
            return best
        for stride in strides:
            try:
                policy = solve(losses, limit, stride, settings.buckets)
            except BudgetError:
                continue
            best = min(best, calibration.measure(policy).kl)
        return best

    def searched(share: float) -> tuple[float, float]:
        limit = limit_of(model, under(share), prefix)
        if share >= 1.0:
            found[share] = make_preset("full", limit)
        else:
            place = place_of(folder, str(under(share).keep))
            found[share] = search_one(model, folder, under(share), progress, place=place, crew=crew)
        return calibration.measure(found[share]).kl, unseen.measure(found[share]).kl

    spec = counted_for(model, settings, prefix)
    least = spec.smallest_bytes / spec.full_bytes
    result = smallest(max_loss, least, solved, searched, told)
    policy = found[result.keep]
    save_policy(policy, folder.policy)
    steps = pd.DataFrame([vars(step) for step in result.steps])
    write_whole(folder.path / "smallest.csv", partial(_to_csv, steps))
    return result, policy


def settings_from(definition: Definition) -> Settings:
    """What a study definition asks for."""
    limit, prompts, study = definition.limit, definition.prompts, definition.search
    return Settings(
        keep=limit.keep,
        memory=limit.memory,
        batch=limit.batch,
        of=limit.of,
        limit_dtype=limit.dtype,
        limit_guidance=limit.guidance,
        calibration=prompts.calibration,
        unseen=prompts.unseen,
        searched_images=prompts.calibration,
        table_images=study.table_images,
        trials=study.trials,
        seed=study.seed,
        sampler=study.sampler,
        prune=study.prune,
        buckets=study.buckets,
        table=study.table,
        strides=study.strides,
    )


def run_definition(
    definition: Definition, out: Path, device: str = "auto", progress: Progress | None = None, crew: Crew | None = None
) -> tuple[Path, Place]:
    """Trace, classify, search and compare as a study definition says, in the run folder `out`; goes on after a stop.

    Definitions that differ only in their limit or search share a run folder: its trace, its table, its unseen images.

    Returns:
        The policy's file, named as the definition says, and where the search keeps its files.

    Raises:
        DataError: too few prompts, or the folder holds a run of another model or other prompts.
    """
    settings = settings_from(definition)
    chosen = definition.prompts.file
    texts = default_prompts(definition.model) if chosen is None else read_prompts(chosen)
    parts = split(texts, settings.calibration, settings.unseen)
    for name, part in zip(("calibration", "unseen"), parts, strict=True):
        if len(part) < getattr(settings, name):
            raise DataError(
                f"prompts.{name}: asks for {getattr(settings, name)}, there are {len(part)} of {len(texts)} prompts; "
                "name a file with more, or ask for fewer."
            )
    model = load_model(definition.model, device=device, dtype=definition.dtype)
    folder = RunFolder(out)
    if folder.json.is_file():
        _same_run(folder, model, parts, settings)
    else:
        begin(model, definition.model, folder, parts, settings)
    limit_of(model, settings, int(folder.read()["prefix"]))  # refused before anything is generated
    if not folder.done("trace"):
        trace_step(model, folder, parts[0], settings, progress)
    if not folder.done("heads"):
        heads_step(folder, model, settings)
    place = Place(folder.search / Path(definition.policy).stem, folder.path / "policies" / definition.policy)
    search_one(model, folder, settings, progress, place=place, crew=crew)
    return place.policy, place


def _same_run(folder: RunFolder, model: ImageModel, parts: tuple[list[str], list[str]], settings: Settings) -> None:
    """Refuse a run folder whose images are not those that a definition asks for."""
    folder.check_model(model.shape)
    found = read_prompts_of(folder)
    if (found["calibration"], found["unseen"]) != parts:
        raise DataError(f"{folder.path}: is a run of other prompts; choose another folder with --out.")
    if (seed := folder.read().get("seed")) != settings.seed:
        raise DataError(
            f"{folder.path}: was generated with seed {seed}, now it is {settings.seed}; choose another folder with --out."
        )
