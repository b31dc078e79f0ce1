"""The search against every preset, over budgets and seeds, on pictures that no search saw; and samplers against each other.

Goes on after a stop: studies are kept in the output folder, losses on unseen pictures by fingerprint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from headscope.facts import NUMBER, Kind, check, record
from headscope.models.protocol import ImageModel
from headscope.policy.files import save_policy
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.presets import CONTROLS, make_preset
from headscope.samples import Samples
from headscope.storage import read_json, read_parquet, write_json, write_whole
from headscope.tuning import Remembered, Replay, SearchResult, Sweep, measure_sensitivity, search, study_replay, sweep_presets
from headscope.tuning.compare import bootstrap, step_times
from headscope.tuning.measure.options import ANCHOR, losses_from
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.spaces import fitting_strides

COLUMNS = ["budget", "method", "seed", "replay_kl", "cache_bytes", "trials", "seconds"]
SOLVER, OPTUNA, SEARCHED = "solver", "optuna", "searched"

# Method, seed, policy, calibration KL, policies measured, seconds.
Entry = tuple[str, int, Policy, float, int, float]
# Told after each unit of work: (what is being done, units done, units in all, least loss so far or nan).
Progress = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Ground:
    """What searches of one model share.

    Attributes:
        calibration: the pictures that studies see. unseen: the pictures that every figure is measured on.
        semantic_score: float32 [layers, kv_heads]. prefix: longest prompt. out: folder of all that is kept.
    """

    model: ImageModel
    calibration: Samples
    unseen: Samples
    semantic_score: torch.Tensor
    prefix: int
    out: Path

    def limit(self, keep: str) -> Limit:
        """The byte limit of one guided picture."""
        streams = 1 if float(self.calibration.guidance) == 1.0 else 2
        dtype = str(self.model.dtype).removeprefix("torch.")
        return Limit.from_keep(self.model.shape, keep, prefix=self.prefix, streams=streams, dtype=dtype)

    def losses(self, pictures: int, progress: Progress | None = None) -> pd.DataFrame:
        """The sensitivity table."""
        few = self.calibration.select(range(min(pictures, len(self.calibration))))
        began, path = time.monotonic(), self.out / "sensitivity.parquet"
        before = len(read_parquet(path)) if path.exists() else 0
        table = measure_sensitivity(
            Replay(self.model, few, by_stream=False),
            path=path,
            anchor=ANCHOR,
            progress=_counts(progress, "sensitivity of single heads"),
        )
        seconds = time.monotonic() - began
        table.attrs["seconds"] = _added(path.with_suffix(".json"), seconds if len(table) > before else 0.0)
        return table


class Unseen:
    """Losses on unseen pictures, by fingerprint, kept in a file."""

    def __init__(self, ground: Ground) -> None:
        self.path = ground.out / "unseen.json"
        self.replay = Replay(ground.model, ground.unseen, by_stream=False)
        self.known: dict[str, dict[str, Any]] = _losses(self.path, len(self.replay)) if self.path.exists() else {}

    def measure(self, policy: Policy) -> dict[str, Any]:
        """kl, top1, cache_bytes and by_picture of a policy."""
        key = policy.fingerprint()
        if key not in self.known:
            found = self.replay.measure(policy)
            self.known[key] = {"kl": found.kl, "top1": found.top1, "cache_bytes": found.cache_bytes}
            self.known[key]["by_picture"] = found.kl_by_picture.tolist()
            write_json(self.path, self.known)
        return self.known[key]


def _losses(path: Path, pictures: int) -> dict[str, dict[str, Any]]:
    """What `Unseen` has kept: by fingerprint kl, top1, cache_bytes and by_picture, of that many pictures."""

    def complete(kept: object) -> bool:
        return isinstance(kept, list) and len(kept) == pictures and all(map(NUMBER.accepts, kept))

    each = record(
        {
            **dict.fromkeys(("kl", "top1", "cache_bytes"), NUMBER),
            "by_picture": Kind(f"a list of {pictures} finite numbers", complete),
        }
    )
    known = check(read_json(path), {}, str(path), advice="name another folder")
    return check(known, dict.fromkeys(known, each), str(path), advice="name another folder")


def bench_search(
    ground: Ground,
    keeps: Sequence[str],
    *,
    seeds: int = 5,
    trials: int = 60,
    table_pictures: int = 8,
    progress: Progress | None = None,
    after: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """One row a budget, method and seed: COLUMNS, then calibration_kl, top1, the 95 % interval of replay_kl over pictures
    (kl_low, kl_high), the paired difference to the searched policy of the first seed (difference, difference_low,
    difference_high; positive where this method loses more), and what the policy is (variant).

    `trials` counts policies that were measured, given up ones too; `seconds` the time that measuring them took, for the
    solver and the search with the sensitivity table. Presets depend on no seed and have one row. The policies are written
    beside: keep-20/searched-0.safetensors.

    Args:
        after: called with the rows so far whenever a budget is done.
    """
    unseen, table = Unseen(ground), ground.losses(table_pictures, progress)
    rows: list[dict[str, Any]] = []
    for keep in keeps:
        rows += _budget(ground, keep, unseen, table, seeds, trials, progress)
        if after is not None:
            after(pd.DataFrame(rows))
    return pd.DataFrame(rows)


def _budget(
    ground: Ground,
    keep: str,
    unseen: Unseen,
    table: pd.DataFrame,
    seeds: int,
    trials: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    shape, limit, table_seconds = ground.model.shape, ground.limit(keep), float(table.attrs["seconds"])
    folder = ground.out / f"keep-{keep.removesuffix('%')}"
    replay = Remembered(study_replay(ground.model, ground.calibration))
    sweep = sweep_presets(
        replay,
        shape,
        limit,
        ground.semantic_score,
        prefix=ground.prefix,
        path=folder / "presets.json",
        progress=_counts(progress, f"presets at {keep}"),
    )
    full = make_preset("full", shape, ground.limit("100%"), prefix=ground.prefix)
    found: list[Entry] = [("full", 0, full, 0.0, 1, 0.0)]
    found += _of_presets(sweep)
    proposers = {name: policy for name, policy in sweep.best.items() if name not in CONTROLS}
    for seed in range(seeds):
        for method in (SEARCHED, OPTUNA):
            result = search(
                replay,
                shape,
                limit,
                table if method == SEARCHED else None,
                ground.semantic_score,
                prefix=ground.prefix,
                trials=trials,
                seed=seed,
                storage=folder / f"{method}-{seed}.db",
                presets=proposers,
                progress=_trials(progress, f"{method} at {keep}, seed {seed}"),
            )
            save_policy(result.policy, folder / f"{method}-{seed}.safetensors")
            extra = table_seconds if method == SEARCHED else 0.0
            found.append((method, seed, result.policy, result.kl, *_cost(result, extra)))
            if seed == 0 and method == SEARCHED and result.solver is not None:
                solved = result.solver
                found.append((SOLVER, 0, solved.policy, solved.kl, *_cost(result, table_seconds, "solver")))
            write_whole(folder / f"{method}-{seed}.parquet", partial(_to_parquet, result.trials))
    first = np.array(unseen.measure(next(policy for name, _, policy, *_ in found if name == SEARCHED))["by_picture"])
    share = float(keep.removesuffix("%")) / 100
    return [_row(share, entry, unseen, first) for entry in found]


def _row(share: float, entry: Entry, unseen: Unseen, first: np.ndarray) -> dict[str, Any]:
    method, seed, policy, kl, trials, seconds = entry
    result = unseen.measure(policy)
    mine = np.array(result["by_picture"])
    low, high = bootstrap(mine, 0)
    difference_low, difference_high = bootstrap(mine - first, 0)
    return {
        "budget": share,
        "method": method,
        "seed": seed,
        "replay_kl": result["kl"],
        "cache_bytes": result["cache_bytes"],
        "trials": trials,
        "seconds": round(seconds, 1),
        "calibration_kl": kl,
        "top1": result["top1"],
        "kl_low": low,
        "kl_high": high,
        "difference": float((mine - first).mean()),
        "difference_low": difference_low,
        "difference_high": difference_high,
        "variant": str(policy.provenance.get("variant", policy.provenance.get("origin", ""))),
    }


def _of_presets(sweep: Sweep) -> list[Entry]:
    """The best variant of each preset; its trials are the variants tried."""
    found = []
    for name, policy in sweep.best.items():
        mine = sweep.table[(sweep.table["method"] == name) & sweep.table["fits"]]
        found.append((name, 0, policy, float(mine["kl"].min()), len(mine), float(mine["seconds"].sum())))
    return found


def _cost(result: SearchResult, extra: float, label: str = "") -> tuple[int, float]:
    """Policies measured and seconds, of a whole search or of what its labels begin with."""
    rows = result.trials[result.trials["fingerprint"] != ""]
    rows = rows[rows["label"].str.startswith(label)].drop_duplicates("fingerprint")
    return len(rows), extra + float(rows["seconds"].sum())


def _to_parquet(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path, index=False)


def _added(path: Path, seconds: float) -> float:
    """The seconds that stand in `path` and these, which then stand there too."""
    total = seconds + (check(read_json(path), {"seconds": NUMBER}, str(path))["seconds"] if path.exists() else 0.0)
    if seconds:
        write_json(path, {"seconds": total})
    return total


def bench_samplers(
    ground: Ground,
    keep: str,
    samplers: Sequence[str],
    *,
    seeds: int = 5,
    trials: int = 60,
    table_pictures: int = 8,
    starts: Sequence[str] = (SEARCHED, OPTUNA),
    prune: bool = True,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One row a start, sampler, seed and proposal: method ("searched" begins with the solver's answer, "optuna" has no
    sensitivity table), sampler, seed, trial, best_kl (least loss on the calibration pictures so far), seconds (of measuring
    so far), prune (whether what is worse is given up; of such trials only TPE learns). All begin with the same presets."""
    shape, limit = ground.model.shape, ground.limit(keep)
    table = ground.losses(table_pictures, progress) if SEARCHED in starts else None
    folder = ground.out / f"keep-{keep.removesuffix('%')}"
    replay = Remembered(study_replay(ground.model, ground.calibration))
    sweep = sweep_presets(replay, shape, limit, ground.semantic_score, prefix=ground.prefix, path=folder / "presets.json")
    presets = {name: policy for name, policy in sweep.best.items() if name not in CONTROLS}
    rows = []
    share = float(keep.removesuffix("%")) / 100
    for seed, start, sampler in product(range(seeds), starts, samplers):
        result = search(
            replay,
            shape,
            limit,
            table if start == SEARCHED else None,
            ground.semantic_score,
            prefix=ground.prefix,
            trials=trials,
            seed=seed,
            sampler=sampler,
            patience=None,
            prune=prune,
            storage=folder / f"{start}-{sampler}-{seed}{'' if prune else '-whole'}.db",
            presets=presets,
            progress=_trials(progress, f"{start} by {sampler} at {keep}, seed {seed}"),
        )
        rows += best_so_far(result, {"budget": share, "method": start, "sampler": sampler, "seed": seed, "prune": prune})
    return pd.DataFrame(rows)


def bench_buckets(
    ground: Ground,
    keeps: Sequence[str],
    counts: Sequence[int] = (1, 2, 3, 4, 6),
    *,
    stride: int | None = None,
    table_pictures: int = 8,
    pictures: int = 4,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One row a budget and number of buckets: the solver's answer with at most so many distinct options a layer, its loss
    on unseen pictures and the milliseconds of a decoding step with its cache full (`pictures` drawn together)."""
    shape, unseen = ground.model.shape, Unseen(ground)
    losses = losses_from(ground.losses(table_pictures, progress), shape.layers, shape.kv_heads, shape.geometry)
    rows = []
    for keep in keeps:
        limit = ground.limit(keep)
        every = stride or fitting_strides(shape, limit, ground.prefix)[0]
        solved = {str(count): solve(losses, shape, limit, ground.prefix, every, count) for count in counts}
        times = step_times(unseen.replay, solved, pictures)
        for count in counts:
            policy = solved[str(count)]
            found = unseen.measure(policy)
            used = sum(len(policy.buckets(layer)) for layer in range(shape.layers)) / shape.layers
            low, high = bootstrap(np.array(found["by_picture"]), 0)
            rows.append(
                {
                    "budget": float(keep.removesuffix("%")) / 100,
                    "stride": every,
                    "buckets": count,
                    "used": used,
                    "replay_kl": found["kl"],
                    "kl_low": low,
                    "kl_high": high,
                    "ms_per_step": 1e3 * times[str(count)],
                }
            )
    return pd.DataFrame(rows)


def best_so_far(result: SearchResult, names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a proposal, the incumbents being proposal 0."""
    trials = result.trials
    own = trials["label"].isin(result.incumbents) | trials["label"].eq("")
    least = min(result.incumbents.values())
    rows = [{**names, "trial": 0, "best_kl": least, "seconds": 0.0}]
    seconds = 0.0
    for number, row in enumerate(trials[~own & (trials["label"].fillna("").str.endswith("trial"))].itertuples(), 1):
        seconds += float(row.seconds or 0.0)
        if row.state == "complete":
            least = min(least, float(row.kl))
        rows.append({**names, "trial": number, "best_kl": least, "seconds": round(seconds, 2)})
    return rows


def _counts(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total, float("nan"))


def _trials(progress: Progress | None, what: str) -> Callable[[int, int, float], None] | None:
    return None if progress is None else lambda done, total, least: progress(what, done, total, least)
