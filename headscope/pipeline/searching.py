"""Searches on top of a run: several limits at once, the smallest cache for a loss, a study definition, more workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from headscope.errors import BudgetError, DataError
from headscope.pipeline.opened import Run, begin_run, texts_of
from headscope.pipeline.prompts import split
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.steps import compare_step, heads_step, search_step, trace_step
from headscope.pipeline.steps.paths import SearchPaths
from headscope.pipeline.tables import losses_of, usual_of
from headscope.pipeline.workers import Workers, join_search
from headscope.policy import Policy, load_policy, make_preset, save_policy
from headscope.progress import Progress
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.storage import read_table, write_csv
from headscope.tuning import Losses, Replay, RunConfig, Smallest, Step, find_smallest, fitting_strides, solve, study_replay


def search_one(run: Run, paths: SearchPaths | None = None, workers: Workers | None = None) -> Policy:
    """Search under one limit, and compare on unseen prompts.

    Args:
        run: whose images, head classes and limit.
        paths: where the search keeps its files; by default it is the run's only one.
        workers: that share the search; by default this process alone.
    """
    here = paths or SearchPaths.of(run.folder)
    workers = workers or Workers()
    if workers.count > 1 and workers.storage is None:
        workers = replace(workers, storage=str(here.search / "study.journal"))
    with ExitStack() as stack:
        call = partial(stack.enter_context, join_search(run, here, workers))
        search_step(run, here, workers.storage, call if workers.count > 1 else None)
    compare_step(run, here)
    return load_policy(here.policy, run.model.shape)


def search_many(run: Run, keeps: Sequence[str], workers: Workers | None = None) -> pd.DataFrame:
    """Search under several shares of the cache: policies/keep-50.safetensors and so on, budgets.csv of all methods.

    Args:
        run: whose images and head classes.
        keeps: shares such as "50%".
        workers: that share each search; by default this process alone.

    Returns:
        The content of budgets.csv: the methods.csv of every share, one under the other.
    """
    for keep in keeps:
        run.keeping(keep).limit()  # every share is checked before the first search begins
    tables = []
    for keep in keeps:
        paths = SearchPaths.at_share(run.folder, keep)
        search_one(run.keeping(keep), paths, workers)
        tables.append(read_table(paths.tables / "methods.csv"))
        table = pd.concat(tables, ignore_index=True)
        write_csv(table, run.folder.path / "budgets.csv")
    return table


def search_smallest(
    run: Run, max_loss: float, workers: Workers | None = None, told: Callable[[Step], None] | None = None
) -> tuple[Smallest, Policy]:
    """The smallest cache whose loss stays below `max_loss` on the calibration images and on unseen prompts.

    The policy is policy.safetensors, the steps are smallest.csv.

    Args:
        run: whose images.
        max_loss: nats a token.
        workers: that share each search.
        told: each share that was searched.
    """
    samples = Samples.load(run.folder.samples)
    unseen = Replay(run.model, unseen_images(run), by_stream=False)
    usual = usual_of(run, samples)
    losses = losses_of(run, samples, usual)
    calibration = study_replay(run.model, samples.first(run.config.search.images), usual)
    found: dict[float, Policy] = {}

    def under(share: float) -> Run:
        return run.keeping(f"{100 * share:.3f}%")

    def solved(share: float) -> float:
        return min((calibration.measure(policy).kl for policy in _solver_answers(under(share), losses)), default=float("inf"))

    def searched(share: float) -> tuple[float, float]:
        if share >= 1.0:
            found[share] = make_preset("full", under(share).limit())
        else:
            here = under(share)
            found[share] = search_one(here, SearchPaths.at_share(run.folder, here.config.limit.text), workers)
        return calibration.measure(found[share]).kl, unseen.measure(found[share]).kl

    spec = run.spec()
    least = spec.smallest_of(run.config.search.each_bits, run.config.search.each_prompt == (1,)) / spec.full_bytes
    result = find_smallest(max_loss, least, solved, searched, told)
    policy = found[result.keep]
    save_policy(policy, run.folder.policy)
    write_csv(pd.DataFrame([vars(step) for step in result.steps]), run.folder.path / "smallest.csv")
    return result, policy


def _solver_answers(run: Run, losses: Losses) -> list[Policy]:
    """The solver's answer at every stride that leaves it one."""
    try:
        limit = run.limit()
        strides = fitting_strides(limit, run.config.search.strides)
    except BudgetError:
        return []
    answers = []
    for stride in strides:
        try:
            answers.append(solve(losses, limit, stride, run.config.search.buckets))
        except BudgetError:
            continue
    return answers


def run_definition(
    config: RunConfig, out: Path, device: str = "auto", progress: Progress | None = None, workers: Workers | None = None
) -> SearchPaths:
    """Trace, classify, search and compare as a study definition says, in the run folder `out`; goes on after a stop.

    Definitions that differ only in their limit or search share a run folder: its trace, its table, its unseen images.

    Args:
        config: of `read_config`.
        out: the run folder.
        device: see `load_model`.
        progress: told what is being done.
        workers: that share the search.

    Returns:
        Where the search keeps its files and its policy.

    Raises:
        DataError: too few prompts, or the folder holds a run of another model or other prompts.
    """
    prompts, texts = config.prompts, texts_of(config)
    parts = split(texts, prompts.calibration, prompts.unseen)
    for name, part in zip(("calibration", "unseen"), parts, strict=True):
        if len(part) < getattr(prompts, name):
            raise DataError(
                f"prompts.{name}: asks for {getattr(prompts, name)}, there are {len(part)} of {len(texts)} prompts; "
                "name a file with more, or ask for fewer."
            )
    folder = RunFolder(out)
    run = begin_run(config, out, device=device, resume=folder.json.is_file(), limited=False, progress=progress)
    run.limit()  # refused before anything is generated
    if not folder.done("trace"):
        trace_step(run)
    if not folder.done("heads"):
        heads_step(run)
    paths = SearchPaths.of(folder) if config.policy is None else SearchPaths.named(folder, Path(config.policy).stem)
    if config.policy is not None:
        paths = replace(paths, policy=folder.path / "policies" / config.policy)
    search_one(run, paths, workers)
    return paths
