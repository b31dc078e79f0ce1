"""`headscope search --front`: loss against bytes, and a policy for each asked share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from headscope.heads import Heads
from headscope.models.protocol import ImageModel
from headscope.pipeline.limits import limit_of
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.run import read_prompts_of
from headscope.pipeline.searching import place_of
from headscope.pipeline.settings import Crew, Progress, Settings, as_counts
from headscope.pipeline.tables import table_of
from headscope.policy.files import load_policy, save_policy
from headscope.policy.footprint import parse_share
from headscope.policy.policy import Policy
from headscope.reporting.charts import front as front_chart
from headscope.reporting.style import save_figure
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.storage import write_whole
from headscope.tuning import Replay, study_replay
from headscope.tuning.measure.options import losses_from
from headscope.tuning.measure.sensitivity import table_identity
from headscope.tuning.propose.spaces import ClassSpace, TableSpace, neutral
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.study.pareto import search_the_front
from headscope.tuning.study.storage import open_storage, shown


@dataclass(frozen=True)
class FrontRun:
    """Attributes: points: of the front study, with `unseen_kl` on the front. chosen: keep, kept_ratio, kl, unseen_kl, file."""

    points: pd.DataFrame
    chosen: pd.DataFrame


def search_front(
    model: ImageModel,
    folder: RunFolder,
    keeps: Sequence[str],
    settings: Settings,
    progress: Progress | None = None,
    crew: Crew | None = None,
) -> FrontRun:
    """One study over the limit itself: front.csv, front.svg, policies/front-20.safetensors for each asked share.

    Policies that searches at single shares have found stand in the study as incumbents.
    """
    prefix = int(folder.read()["prefix"])
    shape, scores = model.shape, Heads.load(folder.heads).scores()
    samples = Samples.load(folder.samples)
    shares = {keep: parse_share(keep) for keep in keeps}
    limits = {keep: limit_of(model, replace(settings, keep=keep, memory=None), prefix) for keep in keeps}
    largest = max(limits.values(), key=lambda limit: limit.bytes)
    spec = largest.spec

    counts = as_counts(progress, "trials of the front")
    table = table_of(model, folder, samples, settings, progress)
    losses = losses_from(table.losses, shape.layers, shape.kv_heads, shape.geometry)

    def space_at(share: float) -> TableSpace:
        limit = largest.at(share)
        strides = fitting_strides(largest.at(min(shares.values())), settings.strides)
        classes = ClassSpace(limit, scores, strides)
        towards = classes.build(neutral(classes))
        return TableSpace(limit, scores, strides, losses, towards=towards, buckets=settings.buckets)

    calibration = study_replay(model, samples.select(range(min(settings.searched_images, len(samples)))))
    where = (crew.storage if crew else None) or folder.search / "front.db"
    found = search_the_front(
        calibration,
        space_at,
        shares,
        _found_before(folder, keeps, model),
        trials=settings.trials,
        seed=settings.seed,
        storage=open_storage(where),
        study=f"{shape.name}, seed {settings.seed}: " if "://" in str(where) else "",
        identity={"weights": shape.weights, "seed": settings.seed, **table_identity(calibration, 1), **spec.to_dict()},
        where=shown(where),
        progress=lambda done, total, _: counts and counts(done, total),
    )
    judge = unseen_images(model, folder, read_prompts_of(folder)["unseen"], settings, progress)
    numbers = {keep: found.under(limit.bytes // spec.batch) for keep, limit in limits.items()}
    there = {keep: number for keep, number in numbers.items() if number is not None}
    unseen = Replay(model, judge, by_stream=False)
    judged = {number: unseen.measure(found.policies[number]).kl for number in dict.fromkeys(there.values())}
    plain = spec.full_bytes / spec.batch
    rows = []
    for keep, number in there.items():
        row = found.points.loc[number]
        results = {"calibration_kl": float(row["kl"]), "unseen": {"replay_kl": judged[number]}}
        origin = {"method": "front", "origin": str(row["label"]), "seed": settings.seed}
        file = _file_of(folder, keep)
        save_policy(found.policies[number].replace(limit=limits[keep], provenance=origin, results=results), file)
        kept = float(row["cache_bytes"]) / plain
        rows.append({"keep": keep, "kept_ratio": kept, "kl": float(row["kl"]), "unseen_kl": judged[number], "file": str(file)})
    points = found.points.assign(unseen_kl=pd.Series(judged, dtype="float64"))
    chosen = pd.DataFrame(rows)
    write_whole(folder.path / "front.csv", partial(_to_csv, points))
    save_figure(front_chart(points, chosen, plain), folder.path / "front.svg")
    return FrontRun(points, chosen)


def _file_of(folder: RunFolder, keep: str) -> Path:
    """Where the front's policy at a share goes: beside the one searched at that share alone."""
    file = place_of(folder, keep).policy
    return file.with_name(file.name.replace("keep-", "front-"))


def _found_before(folder: RunFolder, keeps: Sequence[str], model: ImageModel) -> dict[str, Policy]:
    files = {keep: place_of(folder, keep).policy for keep in keeps}
    return {f"searched at {keep}": load_policy(file, model.shape) for keep, file in files.items() if file.is_file()}


def _to_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)
