"""Search a policy under the limit."""

from __future__ import annotations

from collections.abc import Callable

from headscope.heads import Heads
from headscope.models.protocol import ImageModel
from headscope.pipeline.limits import limit_facts, limit_of
from headscope.pipeline.settings import Crew, Place, Progress, Settings
from headscope.pipeline.steps.timed import timed
from headscope.pipeline.tables import groups_of
from headscope.policy.files import save_policy
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.tuning import Tuned, tune


def search_step(
    model: ImageModel,
    folder: RunFolder,
    settings: Settings,
    progress: Progress | None = None,
    *,
    place: Place | None = None,
    crew: Crew | None = None,
    ready: Callable[[], None] | None = None,
) -> Policy:
    """Search a policy under the limit: search/, policy.safetensors, or what `place` names.

    Args:
        crew: where the study is kept. ready: called before the first proposal; see `headscope.tuning.search`.

    Raises:
        DataError: the trace or heads step has not run. BudgetError: see `limit_of`.
    """
    Samples.load(folder.samples), Heads.load(folder.heads)  # what is missing is said before limits are checked
    prefix = int(folder.read()["prefix"])
    limit = limit_of(model, settings, prefix)
    if place is None:
        folder.note(limit=limit_facts(limit, settings))
    here = place or Place(folder.search, folder.policy)
    with timed(folder, "search"):
        tuned = tuned_under(model, folder, settings, here, limit, crew or Crew(), ready=ready, progress=progress)
        save_policy(tuned.policy, here.policy)
        return tuned.policy


def tuned_under(
    model: ImageModel,
    folder: RunFolder,
    settings: Settings,
    place: Place,
    limit: Limit,
    crew: Crew,
    *,
    joins: bool = False,
    ready: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """`tune` on a run's calibration images and head classes; writes nothing but the search's own files.

    Args:
        joins: another process leads this search.
    """
    samples = Samples.load(folder.samples)
    return tune(
        model,
        samples.select(range(min(settings.searched_images, len(samples)))),
        Heads.load(folder.heads).scores(),
        limit,
        place.search,
        trials=settings.trials,
        table_images=settings.table_images,
        strides=settings.strides,
        buckets=settings.buckets,
        sampler=settings.sampler,
        prune=settings.prune,
        patience=settings.patience,
        seed=settings.seed,
        quick=settings.quick,
        table=folder.table(settings.table_images),
        kind=settings.table,
        groups=None if settings.quick else groups_of(model, folder, settings.table),
        storage=crew.storage,
        ready=ready,
        joins=joins,
        progress=progress,
    )
