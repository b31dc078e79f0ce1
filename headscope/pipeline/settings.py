"""What a user may choose of a run, who works on its study, and where a search keeps its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Told after each unit of work: (what is being done, units done, units in all, least loss so far or nan).
Progress = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Settings:
    """What a user may choose; the defaults are the demo's.

    Attributes:
        keep, memory: the byte limit, as a share of the plain cache ("20%") or a size ("12MiB"); one of the two, or none while
            nothing is searched.
        batch: images generated together that `memory` is for. of: "all" or "image", what `keep` counts.
        trials: of the study. calibration, unseen: images to search on, and to judge by.
        searched_images: how many of the calibration images a trial replays; table_images: the sensitivity table.
        quick: a dry run: no sensitivity table, presets not swept.
        table: kind of the sensitivity table, one of `headscope.tuning.measure.table.KINDS`.
        sampler, prune, buckets, strides, patience: of the study, see `headscope.tuning.search`.
        limit_dtype, limit_guidance: what the limit counts, where that is not what the model runs here: the dtype of the
            cache, and whether there are two streams.
        guidance: scale of classifier-free guidance, 1 for none; the model's own unless given.
    """

    keep: str | None = "20%"
    memory: str | None = None
    batch: int = 1
    of: str = "all"
    trials: int = 40
    calibration: int = 16
    unseen: int = 16
    searched_images: int = 6
    table_images: int = 2
    quick: bool = False
    seed: int = 0
    batch_size: int = 16
    guidance: float | None = None
    sampler: str = "tpe"
    prune: bool = True
    buckets: int = 3
    table: str = "auto"
    strides: tuple[int, ...] | None = None
    patience: int | None = 30
    limit_dtype: str | None = None
    limit_guidance: bool | None = None


@dataclass(frozen=True)
class Crew:
    """Who works on a study.

    Attributes:
        storage: where it is kept (default: a SQLite file in the run folder, a journal for more processes).
        workers: processes on this machine. engine: "processes", or "ray" on the cluster at `address` (None: a local one).
    """

    storage: str | None = None
    workers: int = 1
    engine: str = "processes"
    address: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a search keeps its files, and its policy."""

    search: Path
    policy: Path


def as_counts(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    """`progress` for work that counts only units done and in all."""
    if progress is None:
        return None
    return lambda done, total: progress(what, done, total, float("nan"))
