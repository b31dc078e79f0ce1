"""The search: from a table, graded scores and a byte limit to the best policy measured on the calibration pictures.

In order: the presets and the allocator's answers (each fitting stride, several decays) are measured and stay as
incumbents; a quarter of the trials looks for the best class-level policy (`ClassSpace`); the rest works around the
allocator's answer (`TableSpace`). The result is the best of everything measured, so it is never above an incumbent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import BudgetError
from headscope.policy.budget import Limit
from headscope.policy.policy import ModelShape, Policy
from headscope.storage import write_json, write_whole
from headscope.tuning.allocators import NODES, solve
from headscope.tuning.options import Losses, losses_from
from headscope.tuning.replay import Measures
from headscope.tuning.space import ClassSpace, Space, TableSpace, fitting_strides, neutral
from headscope.tuning.trials import Found, TrialBook

# Decays tried with the allocator's answer: H2O's sum, a memory of a few strides, the last stride alone.
SOLVER_DECAYS = (1.0, 0.5, 0.0)
CLASSES, TABLE = "classes", "table"


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        policy: the best of everything measured, provenance and calibration results filled in.
        kl: its loss on the calibration pictures, nats a token.
        label: where it came from: "preset h2o", "solver stride 16 decay 1", "table trial" ...
        incumbents: label -> kl of what was measured before the first trial.
        trials: one row a trial, in the order of measuring within each phase.
        importances: phase -> number -> share of the loss's variance.
        stopped: why the search ended before its last trial, or "".
        dropped_strides: strides asked for whose buffer does not fit the limit.
    """

    policy: Policy
    kl: float
    label: str
    incumbents: dict[str, float]
    trials: pd.DataFrame
    importances: dict[str, dict[str, float]]
    stopped: str = ""
    dropped_strides: list[int] = field(default_factory=list)
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The content of search.json."""
        states = self.trials["state"].value_counts().to_dict()
        return {
            "best": {"label": self.label, "kl": self.kl, "fingerprint": self.policy.fingerprint()},
            "incumbents": self.incumbents,
            "importances": self.importances,
            "trials": {str(name): int(count) for name, count in states.items()},
            "repeated": int(self.trials["repeated"].sum()),
            "stopped": self.stopped,
            "dropped_strides": self.dropped_strides,
            "seconds": self.seconds,
            **self.settings,
        }

    def save(self, folder: str | Path) -> None:
        """Write trials.parquet and search.json into `folder`."""
        folder = Path(folder)
        write_whole(folder / "trials.parquet", lambda path: self.trials.to_parquet(path, index=False))
        write_json(folder / "search.json", self.summary())


def search(
    replay: Measures,
    shape: ModelShape,
    limit: Limit,
    table: pd.DataFrame | Losses | None,
    semantic_score: torch.Tensor,
    *,
    prefix: int,
    trials: int = 40,
    seed: int = 0,
    storage: str | Path | None = None,
    presets: Mapping[str, Policy] | None = None,
    strides: Sequence[int] | None = None,
    buckets: int = 3,
    patience: int | None = 30,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> SearchResult:
    """Search the best policy under `limit` on the pictures of `replay`.

    Args:
        replay: the calibration pictures; figures to report come from others.
        table: sensitivity table (None: only the class-level numbers are searched).
        semantic_score: float32 [layers, kv_heads] in [0, 1], from the head classes.
        prefix: prefix length that the byte limit assumes.
        trials: proposals in all, on top of the incumbents; a continued study makes only what is missing.
        storage: SQLite file; the same call continues it.
        presets: swept presets by name, measured first.
        strides: to choose from (default: quarter, half, whole and two rows, where they fit).
        patience: stop after so many proposals of the last phase without improvement (None: never).
        identity: what else the study belongs to (trace hash, calibration prompts).
        progress: called with (proposals made, proposals in all, least loss so far).

    Raises:
        BudgetError: nothing fits the limit.
        DataError: the storage holds a study of something else.
    """
    started = time.monotonic()
    semantic_score = semantic_score.float()
    fitting = fitting_strides(shape, limit, prefix, strides)
    belongs = {"weights": shape.weights, "bytes": limit.bytes, "batch": limit.batch, "streams": limit.streams}
    belongs |= {"dtype": str(limit.dtype), "of": limit.of, "prefix": prefix, "seed": seed, **(identity or {})}
    measured: dict[str, dict[str, Any]] = {}
    by_class = TrialBook(replay, shape, CLASSES, belongs, storage, seed, measured)
    by_table = TrialBook(replay, shape, TABLE, belongs, storage, seed, measured) if table is not None else None
    class_space = ClassSpace(shape, limit, prefix, semantic_score, fitting)
    incumbents: dict[str, float] = {}
    for name, policy in (presets or {}).items():
        found = by_class.incumbent(f"preset {name}", policy, class_space, class_space.locate(policy))
        incumbents[found.label] = found.kl
    quota = trials if by_table is None else trials // 4
    table_space: TableSpace | None = None
    if by_table is not None and table is not None:
        losses = table if isinstance(table, Losses) else losses_from(table, shape.layers, shape.kv_heads, shape.geometry)
        first = next(iter((presets or {}).values()), None) or class_space.build(neutral(class_space))
        table_space = TableSpace(shape, limit, prefix, semantic_score, fitting, losses, towards=first, buckets=buckets)
        for label, policy, values in _solver_answers(table_space):
            found = by_table.incumbent(label, policy, table_space, values)
            incumbents[found.label] = found.kl
    made = _Counter(trials, progress)
    _propose(by_class, class_space, quota, made, None if by_table is not None else patience)
    stopped = made.stopped
    if by_table is not None and table_space is not None:
        best_class = by_class.best()
        if best_class is not None:
            table_space.towards = best_class.policy
        _propose(by_table, table_space, trials - quota, made, patience)
        stopped = made.stopped
    books: list[tuple[TrialBook, Space]] = [(by_class, class_space)]
    if by_table is not None and table_space is not None:
        books.append((by_table, table_space))
    candidates = [candidate for book, _ in books if (candidate := book.best())]
    best = min(candidates, key=lambda candidate: candidate.kl, default=None)
    if best is None:
        raise BudgetError("Not one policy could be measured under this limit; the reasons stand in trials.parquet.")
    return SearchResult(
        policy=_signed(best, measured, seed, limit),
        kl=best.kl,
        label=best.label,
        incumbents=incumbents,
        trials=pd.concat([book.table() for book, _ in books], ignore_index=True),
        importances={book.name: book.importances(space) for book, space in books},
        stopped=stopped,
        dropped_strides=[stride for stride in strides or [] if stride not in fitting],
        seconds=time.monotonic() - started,
        settings={"trials_asked": trials, "seed": seed, "buckets": buckets, "strides": fitting, **belongs},
    )


@dataclass
class _Counter:
    """Proposals made over both phases, for the progress display and the reason of an early end."""

    trials: int
    progress: Callable[[int, int, float], None] | None
    made: int = 0
    least: float = float("inf")
    stopped: str = ""

    def step(self, count: int, best: Found | None) -> None:
        self.made += count
        if best is not None:
            self.least = min(self.least, best.kl)
        if self.progress is not None:
            self.progress(self.made, self.trials, self.least)


def _propose(book: TrialBook, space: Space, quota: int, counter: _Counter, patience: int | None) -> None:
    counter.step(book.sampled, book.best())
    while book.sampled < quota:
        if patience is not None and book.unimproved() >= patience:
            counter.stopped = f"{patience} proposals in a row found nothing better; {quota - book.sampled} not made"
            return
        book.propose(space)
        counter.step(1, book.best())


def _solver_answers(space: TableSpace) -> list[tuple[str, Policy, dict[str, float]]]:
    """The allocator's answer at every fitting stride, and at the table's stride with other decays."""
    answers = []
    exact = replace(space, nodes=NODES)
    middle = neutral(space)
    for index, stride in enumerate(space.strides):
        decays = SOLVER_DECAYS if index == int(middle["stride"]) else SOLVER_DECAYS[:1]
        for decay in decays:
            values = {**middle, "stride": index, "decay": decay}
            try:
                answers.append((f"solver stride {stride} decay {decay:g}", exact.build(values), values))
            except BudgetError:  # this stride's buffer leaves no choice that fits; another one may
                continue
    return answers


def _signed(best: Found, measured: Mapping[str, Mapping[str, Any]], seed: int, limit: Limit) -> Policy:
    """The policy with its origin and its calibration results."""
    result = measured.get(best.policy.fingerprint(), {})
    origin = {"method": "searched", "origin": best.label, "study": best.phase, "trial": best.number, "seed": seed}
    terms = {"bytes": limit.bytes, "batch": limit.batch, "streams": limit.streams, "dtype": str(limit.dtype), "of": limit.of}
    return best.policy.replace(
        provenance={**best.policy.provenance, **origin, "limit": terms},
        results={"calibration_kl": best.kl, **({"calibration_top1": result["top1"]} if "top1" in result else {})},
    )


__all__ = ["SOLVER_DECAYS", "SearchResult", "search", "solve"]
