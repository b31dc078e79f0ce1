"""Search a policy under the limit."""

from __future__ import annotations

from collections.abc import Callable

from headscope.errors import HeadscopeError
from headscope.heads import Heads
from headscope.pipeline.opened import Run, limit_facts
from headscope.pipeline.rules import run_rule
from headscope.pipeline.steps.paths import SearchPaths
from headscope.pipeline.steps.timed import timed
from headscope.pipeline.tables import groups_of
from headscope.policy import Policy, Rule, save_policy
from headscope.samples import Samples
from headscope.tuning import Search, SearchFiles


def search_step(
    run: Run,
    paths: SearchPaths | None = None,
    storage: str | None = None,
    ready: Callable[[], None] | None = None,
) -> Policy:
    """Search a policy under the limit: search/, policy.safetensors, or what `paths` names.

    Args:
        run: whose calibration images and head classes.
        paths: where the search keeps its files; by default it is the run's only one.
        storage: of the study, see `open_storage`.
        ready: called before the first proposal, see `headscope.tuning.Search.lead`.

    Raises:
        DataError: the trace or heads step has not run.
        BudgetError: see `Run.limit`.
    """
    paths = paths or SearchPaths.of(run.folder)
    search = search_of(run, paths, storage)
    if paths.alone:
        run.folder.note(limit=limit_facts(run.config.limit, search.limit))
    with timed(run.folder, "search"):
        policy = search.lead(ready).policy
        policy = policy.replace(rule=_rule(run))
        save_policy(policy, paths.policy)
        return policy


def _rule(run: Run) -> Rule | None:
    """What the policy carries so that it can be transferred; None where the trace lacks heads, or no table was measured."""
    try:
        return run_rule(run.folder, run.model.shape)
    except HeadscopeError:
        return None


def search_of(run: Run, paths: SearchPaths, storage: str | None = None) -> Search:
    """The search of a run, to be led or joined.

    Args:
        run: whose calibration images and head classes.
        paths: where the search keeps its files.
        storage: of the study, see `open_storage`; by default study.db in the folder of the search.
    """
    config, folder = run.config.search, run.folder
    samples, scores = Samples.load(folder.samples), Heads.load(folder.heads).scores()  # what is missing is said first
    return Search(
        run.model,
        samples,
        scores,
        run.limit(),
        config,
        SearchFiles(paths.search, folder.table(config.table_images), storage),
        None if config.quick else groups_of(run),
        run.progress,
    )
