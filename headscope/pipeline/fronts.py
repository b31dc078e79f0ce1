"""`headscope search --front`: loss against bytes, and a policy for each asked share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from headscope.heads import Heads
from headscope.pipeline.opened import Run
from headscope.pipeline.recorded import unseen_images
from headscope.pipeline.steps.paths import SearchPaths
from headscope.pipeline.tables import losses_of, usual_of
from headscope.policy import Limit, Policy, load_policy, parse_share, save_policy
from headscope.reporting import front_chart, save_figure
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.storage import write_csv
from headscope.tuning import (
    ClassSpace,
    Front,
    Replay,
    StudyStore,
    TableSpace,
    UsualAttention,
    fitting_strides,
    neutral,
    search_the_front,
    study_replay,
    table_identity,
)


@dataclass(frozen=True)
class FrontRun:
    """What `search_front` found; losses in nats a token.

    Attributes:
        points: a row a policy that the study measured, as in `Front`, and `unseen_kl` of those that were chosen.
        chosen: a row an asked share: keep, kept_ratio, kl, unseen_kl, file.
    """

    points: pd.DataFrame
    chosen: pd.DataFrame


def search_front(run: Run, keeps: Sequence[str], storage: str | None = None) -> FrontRun:
    """One study over the limit itself: front.csv, front.svg, policies/front-20.safetensors for each asked share.

    Policies that searches at single shares have found stand in the study as incumbents.

    Args:
        run: whose images and classes.
        keeps: shares of the plain cache that get a policy each.
        storage: of the study, see `open_storage`; by default front.db in the run folder.
    """
    limits = {keep: run.keeping(keep).limit() for keep in keeps}
    largest = max(limits.values(), key=lambda limit: limit.bytes)
    usual = usual_of(run, Samples.load(run.folder.samples))
    found = _front(run, keeps, largest, storage or run.folder.search / "front.db", usual)
    unseen = Replay(run.model, unseen_images(run), by_stream=False)
    numbers = {keep: found.under(limit.bytes // largest.spec.batch) for keep, limit in limits.items()}
    there = {keep: number for keep, number in numbers.items() if number is not None}
    policies = {
        number: found.policies[number] if usual is None else usual.complete(found.policies[number])
        for number in dict.fromkeys(there.values())
    }
    judged = {number: unseen.measure(policy).kl for number, policy in policies.items()}
    plain = largest.spec.full_bytes / largest.spec.batch
    rows = []
    for keep, number in there.items():
        row = found.points.loc[number]
        results = {"calibration_kl": float(row["kl"]), "unseen": {"replay_kl": judged[number]}}
        origin = {"method": "front", "origin": str(row["label"]), "seed": run.config.search.seed}
        file = _file_of(run.folder, keep)
        save_policy(policies[number].replace(limit=limits[keep], provenance=origin, results=results), file)
        kept = float(row["cache_bytes"]) / plain
        rows.append({"keep": keep, "kept_ratio": kept, "kl": float(row["kl"]), "unseen_kl": judged[number], "file": str(file)})
    points = found.points.assign(unseen_kl=pd.Series(judged, dtype="float64"))
    chosen = pd.DataFrame(rows)
    write_csv(points, run.folder.path / "front.csv")
    save_figure(front_chart(points, chosen, plain), run.folder.path / "front.svg")
    return FrontRun(points, chosen)


def _front(run: Run, keeps: Sequence[str], largest: Limit, storage: str | Path, usual: UsualAttention | None) -> Front:
    """The study: spaces at every share, from the run's table and classes, on its calibration images."""
    model, config = run.model, run.config.search
    scores, samples = Heads.load(run.folder.heads).scores(), Samples.load(run.folder.samples)
    shares = {keep: parse_share(keep) for keep in keeps}
    losses = losses_of(run, samples, usual)

    def space_at(share: float) -> TableSpace:
        limit = largest.at(share)
        strides = fitting_strides(largest.at(min(shares.values())), config.strides)
        classes = ClassSpace(limit, scores, strides)
        towards = classes.build(neutral(classes))
        return TableSpace(limit, scores, strides, losses, towards=towards, buckets=config.buckets)

    replay = study_replay(model, samples.first(config.images), usual)
    name = f"{model.shape.name}, seed {config.seed}: " if "://" in str(storage) else ""
    identity = {"weights": model.shape.weights, "seed": config.seed, **table_identity(replay, 1), **largest.spec.to_dict()}
    identity |= {"bits": config.bits, "prompt": config.prompt, "score": config.score}
    store = StudyStore.open(storage, name, identity)
    return search_the_front(replay, space_at, shares, _found_before(run, keeps), config, store, run.progress)


def _file_of(folder: RunFolder, keep: str) -> Path:
    """Where the front's policy at a share goes: beside the one searched at that share alone."""
    file = SearchPaths.at_share(folder, keep).policy
    return file.with_name(file.name.replace("keep-", "front-"))


def _found_before(run: Run, keeps: Sequence[str]) -> dict[str, Policy]:
    files = {keep: SearchPaths.at_share(run.folder, keep).policy for keep in keeps}
    return {f"searched at {keep}": load_policy(file, run.model.shape) for keep, file in files.items() if file.is_file()}
