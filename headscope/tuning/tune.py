"""The whole search as one call: table, presets, knapsack, study; into one folder that continues after a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headscope.errors import DataError
from headscope.models.protocol import ImageModel
from headscope.policy.files import save_policy
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.presets import CONTROLS
from headscope.samples import Samples
from headscope.tuning.measure.coverage import Groups
from headscope.tuning.measure.measurement import Remembered
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.sensitivity import table_identity
from headscope.tuning.measure.table import HEADS, sensitivity_table
from headscope.tuning.propose.presets import Sweep, sweep_presets
from headscope.tuning.search import SearchResult, search

# Told after each unit of work: (what is being done, units done, units in all, least loss so far or nan).
Progress = Callable[[str, int, int, float], None]


# Images that a study replays together, so that a bad policy is given up after the first of them.
AT_ONCE = 8


def study_replay(model: ImageModel, samples: Samples, batch_size: int | None = None) -> Replay:
    """The calibration images of a study, in batches small enough that giving a policy up saves something."""
    replay = Replay(model, samples.select(range(1)), by_stream=False)
    return Replay(model, samples, batch_size=min(batch_size or AT_ONCE, replay.fitting_batch()), by_stream=False)


@dataclass(frozen=True)
class Tuned:
    """Attributes: policy: the best one found; result: of the study; presets: the swept presets at the same bytes."""

    policy: Policy
    result: SearchResult
    presets: Sweep


def tune(
    model: ImageModel,
    samples: Samples,
    semantic_score: torch.Tensor,
    limit: Limit,
    out: str | Path,
    *,
    trials: int = 40,
    table_images: int = 2,
    strides: Sequence[int] | None = None,
    buckets: int = 3,
    sampler: str = "tpe",
    prune: bool = True,
    patience: int | None = 30,
    seed: int = 0,
    batch_size: int | None = None,
    quick: bool = False,
    table: str | Path | None = None,
    kind: str = HEADS,
    groups: Groups | None = None,
    storage: str | Path | None = None,
    ready: Callable[[], None] | None = None,
    joins: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Search the policy that loses least on `samples` under `limit`.

    Args:
        samples: the calibration images; report figures of others.
        semantic_score: float32 [layers, kv_heads] of `classify`.
        out: folder for sensitivity.parquet, presets.parquet, presets/, study.db, trials.parquet and search.json. The same
            call again continues there; other limits, seeds and numbers of images have studies of their own.
        trials: of the study, on top of the presets and the knapsack's answers.
        table_images: how many of the images measure the sensitivity table.
        quick: a dry run: no sensitivity table, one variant a preset.
        table: where the sensitivity table is kept, which belongs to no limit (default: sensitivity.parquet in `out`).
        kind, groups: of the table, see `sensitivity_table`.
        storage: where the study is kept (default: study.db in `out`); see `open_storage`.
        buckets, sampler, prune, patience, strides, ready: see `search`.
        joins: another process leads this search: propose, and leave its files alone.

    Raises:
        BudgetError: nothing fits. DataError: the folder belongs to another model, limit or calibration set.
    """
    out = Path(out)
    if tuple(semantic_score.shape) != (model.shape.layers, model.shape.kv_heads):
        raise DataError(
            f"The head classes are for {tuple(semantic_score.shape)} layers and KV heads, {model.name} has "
            f"{(model.shape.layers, model.shape.kv_heads)}: classify a trace of this model."
        )

    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total, float("nan")) if progress is not None else None

    losses, measured = None, None
    if not quick:
        few = samples.select(range(min(table_images, len(samples))))
        measured = sensitivity_table(
            Replay(model, few, batch_size=batch_size, by_stream=False),
            kind,
            groups,
            table or out / "sensitivity.parquet",
            tell("sensitivity of heads"),
        )
        losses = measured.losses
    replay = study_replay(model, samples, batch_size)
    remembered = Remembered(replay)  # the study begins with presets that the sweep has just measured
    presets = sweep_presets(
        remembered,
        limit,
        semantic_score,
        quick=quick,
        path=out / "presets.json",
        progress=tell("presets at the same bytes"),
    )
    for name, policy in presets.best.items() if not joins else ():
        save_policy(policy, out / "presets" / f"{name}.safetensors")
    kept = storage or out / "study.db"
    by = "" if measured is None or measured.kind == HEADS else f", table of {measured.kind}"
    result = search(
        remembered,
        limit,
        losses,
        semantic_score,
        trials=trials,
        seed=seed,
        storage=kept,
        study=f"{model.shape.name}, {limit.bytes} bytes, {len(samples)} images, seed {seed}{by}: ",
        presets={name: policy for name, policy in presets.best.items() if name not in CONTROLS},
        strides=strides,
        buckets=buckets,
        sampler=sampler,
        prune=prune,
        patience=patience,
        ready=ready,
        identity={
            "calibration": table_identity(replay, 1)["images"],
            "table": 0 if measured is None else _named(measured.kind, table_images),
        },
        progress=lambda done, total, least: progress("trials", done, total, least) if progress is not None else None,
    )
    if measured is not None:
        result.settings["sensitivity"] = measured.facts() | {"sentence": measured.sentence()}
    if not joins:
        result.save(out)
    return Tuned(result.policy, result, presets)


def _named(kind: str, images: int) -> int | str:
    """What of the table a study belongs to."""
    return images if kind == HEADS else f"{kind} of {images}"
