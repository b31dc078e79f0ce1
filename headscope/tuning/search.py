"""The search: from a table, graded scores and a byte limit to the best policy measured on the calibration images.

In order: the presets and the allocator's answers (each fitting stride, several decays) are measured and stay as
incumbents; a sixth of the trials looks for the best class-level policy (`ClassSpace`), half of them work around the
allocator's answer (`TableSpace`), a third around the best policy so far (`GroupSpace`); without a table, one half and the
other of the first and the last. The result is the best of everything measured, so it is never above an incumbent.

Several processes may work on one storage: each measures the incumbents that nobody has measured yet, and enters a phase
when the one before is finished by all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from optuna.storages import BaseStorage

from headscope.errors import BudgetError, DataError
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.storage import write_json, write_whole
from headscope.tuning.measure.measurement import Measures
from headscope.tuning.measure.options import ANCHOR, Losses, losses_from
from headscope.tuning.propose.knapsack import NODES
from headscope.tuning.propose.spaces import ClassSpace, GroupSpace, Space, TableSpace, neutral
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.study.phase import Found, TrialBook
from headscope.tuning.study.storage import open_storage, shared, shown

# Raised when the meaning of a study's numbers changes: a study of another version is not continued.
DEFINITIONS = 4
# Tried with the allocator's answer: scores that fade faster than the table's, and first image tokens that all heads keep.
SOLVER_DECAYS = (0.85, 0.6)
SOLVER_ANCHORS = (0, 2, 4)
CLASSES, TABLE, GROUPS = "classes", "table", "groups"


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        policy: the best of everything measured, provenance and calibration results filled in.
        kl: its loss on the calibration images, nats a token.
        label: where it came from: "preset h2o", "solver stride 16 decay 1", "table trial" ...
        incumbents: label -> kl of what was measured before the first trial. solver: the best of the solver's answers.
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
    solver: Found | None = None
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
    limit: Limit,
    table: pd.DataFrame | Losses | None,
    semantic_score: torch.Tensor,
    *,
    trials: int = 40,
    seed: int = 0,
    storage: str | Path | BaseStorage | None = None,
    study: str = "",
    presets: Mapping[str, Policy] | None = None,
    strides: Sequence[int] | None = None,
    buckets: int = 3,
    sampler: str = "tpe",
    prune: bool = True,
    patience: int | None = 30,
    ready: Callable[[], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> SearchResult:
    """Search the best policy under `limit` on the images of `replay`.

    Args:
        replay: the calibration images; figures to report come from others.
        table: sensitivity table (None: Optuna alone, by classes and by groups of heads).
        semantic_score: float32 [layers, kv_heads] in [0, 1], from the head classes.
        trials: proposals in all, on top of the incumbents; a continued study makes only what is missing.
        storage: see `open_storage`; the same call continues it. study: its name there, where a storage keeps several.
        presets: swept presets by name, measured first.
        strides: to choose from (default: quarter, half, whole and two rows, where they fit).
        buckets: most distinct options a layer. sampler: one of `SAMPLERS`.
        prune: give proposals up that are worse than the best, image by image.
        patience: stop after so many proposals of a phase without improvement (None: never).
        ready: called once the incumbents are measured, before the first proposal: the moment for other processes to join.
        identity: what else the study belongs to (trace hash, calibration prompts).
        progress: called with (proposals made, proposals in all, least loss so far).

    Raises:
        BudgetError: nothing fits the limit.
        DataError: the storage holds a study of something else.
    """
    if sampler == "cma-es" and isinstance(storage, (str, Path)) and shared(storage):
        raise DataError(
            f"--sampler cma-es: keeps its state as a pickle in the storage, and {shown(storage)} is one that others may write "
            "to; choose another sampler, or a SQLite file of your own."
        )
    started = time.monotonic()
    semantic_score = semantic_score.float()
    shape, spec = limit.spec.shape, limit.spec
    fitting = fitting_strides(limit, strides)
    belongs = {"definitions": DEFINITIONS, "weights": shape.weights, "bytes": limit.bytes, **spec.to_dict()}
    belongs |= {"seed": seed, "sampler": sampler, "buckets": buckets, "prune": prune, **(identity or {})}
    where = shown(storage) if isinstance(storage, (str, Path)) else "the study"
    kept = storage if isinstance(storage, BaseStorage) else open_storage(storage)
    measured: dict[str, dict[str, Any]] = {}

    def book(name: str) -> TrialBook:
        return TrialBook(
            replay, shape, name, belongs, kept, seed, measured, where=where, study=study, sampler=sampler, prune=prune
        )

    made = _Counter(trials, progress)
    incumbents: dict[str, float] = {}
    books: list[tuple[TrialBook, Space]] = []

    by_class = book(CLASSES)
    class_space = ClassSpace(limit, semantic_score, fitting)
    books.append((by_class, class_space))
    for name, policy in (presets or {}).items():
        found = by_class.incumbent(f"preset {name}", policy, class_space, class_space.locate(policy))
        incumbents[found.label] = found.kl

    by_table: TrialBook | None = None
    solved: list[Found] = []
    if table is not None:
        losses = table if isinstance(table, Losses) else losses_from(table, shape.layers, shape.kv_heads, shape.geometry)
        towards = next(iter((presets or {}).values()), None) or class_space.build(neutral(class_space))
        table_space = TableSpace(limit, semantic_score, fitting, losses, towards=towards, buckets=buckets)
        by_table = book(TABLE)
        books.append((by_table, table_space))
        solved = _solver_answers(by_table, table_space)
        incumbents |= {found.label: found.kl for found in solved}

    if ready is not None:
        ready()
    first, last = (trials // 6, trials // 3) if by_table is not None else (trials // 2, trials - trials // 2)
    _propose(by_class, class_space, first, made, patience)
    if by_table is not None:
        best_class = by_class.best()
        if best_class is not None:
            table_space.towards = best_class.policy
        _propose(by_table, table_space, trials - first - last, made, patience)
    best = _best(books)
    group_space = GroupSpace(limit, semantic_score, best.policy, buckets)
    name = f"{GROUPS} {best.policy.fingerprint()[:8]}"
    phases = [other.removeprefix(study) for other in optuna.get_all_study_names(kept) if other.startswith(study)]
    others = [phase for phase in phases if phase.startswith(GROUPS) and phase != name]
    books += [(book(other), group_space) for other in others]  # of the same search with fewer trials
    by_group = book(name)
    books.append((by_group, group_space))
    by_group.incumbent(best.label, best.policy, group_space, neutral(group_space))
    _propose(by_group, group_space, last, made, patience)

    best = _best(books)
    return SearchResult(
        policy=_signed(best, measured, seed, limit),
        kl=best.kl,
        label=best.label,
        incumbents=incumbents,
        trials=pd.concat([book.table() for book, _ in books], ignore_index=True),
        importances={book.name: book.importances(space) for book, space in books},
        solver=min(solved, key=lambda found: found.kl, default=None),
        stopped="; ".join(made.stopped),
        dropped_strides=[stride for stride in strides or [] if stride not in fitting],
        seconds=time.monotonic() - started,
        settings={"trials_asked": trials, "strides": fitting, **belongs},
    )


def _best(books: Sequence[tuple[TrialBook, Space]]) -> Found:
    """The least loss of all books; of equals the one of the earlier phase."""
    candidates = [found for book, _ in books if (found := book.best())]
    if not candidates:
        raise BudgetError("Not one policy could be measured under this limit; the reasons stand in trials.parquet.")
    return min(candidates, key=lambda found: found.kl)


@dataclass
class _Counter:
    """Proposals made over all phases, for the progress display and the reasons of early ends."""

    trials: int
    progress: Callable[[int, int, float], None] | None
    made: int = 0
    least: float = float("inf")
    stopped: list[str] = field(default_factory=list)

    def step(self, count: int, best: Found | None) -> None:
        self.made += count
        if best is not None:
            self.least = min(self.least, best.kl)
        if self.progress is not None:
            self.progress(self.made, self.trials, self.least)


def _propose(book: TrialBook, space: Space, quota: int, counter: _Counter, patience: int | None) -> None:
    seen = book.sampled
    counter.step(seen, book.best())
    while not book.settled(quota):
        if patience is not None and book.unimproved() >= patience:
            left = quota - book.sampled
            counter.stopped.append(f"{book.name}: {patience} proposals in a row found nothing better; {left} not made")
            counter.step(max(left, 0), book.best())
            return
        book.propose(space)
        now = book.sampled
        counter.step(now - seen, book.best())
        seen = now


def _solver_answers(book: TrialBook, space: TableSpace) -> list[Found]:
    """Measure the allocator's answer at every fitting stride, then the best of these with scores that fade faster than the
    table's, then with other numbers of anchors: one number after the other, as they hardly depend on each other.
    """
    exact = replace(space, nodes=NODES)
    found: list[tuple[Found, dict[str, float]]] = []

    def measure(values: dict[str, float]) -> None:
        stride = space.strides[int(values["stride"])]
        label = f"solver stride {stride} decay {values['decay']:g} anchor {values['anchor']:g}"
        try:
            policy = exact.build(values)
        except BudgetError:  # this stride's buffer, or the anchors, leave no choice that fits; another one may
            return
        found.append((book.incumbent(label, policy, space, values), values))

    def best() -> dict[str, float]:
        return min(found, key=lambda pair: pair[0].kl)[1]

    for anchor in (ANCHOR, 0):
        for index in range(len(space.strides)) if not found else ():
            measure({**neutral(space), "stride": index, "anchor": anchor})
    for name, others in (("decay", SOLVER_DECAYS), ("anchor", SOLVER_ANCHORS)):
        if found:
            settled = best()
            for value in others:
                measure({**settled, name: value})
    return [one for one, _ in found]


def _signed(best: Found, measured: Mapping[str, Mapping[str, Any]], seed: int, limit: Limit) -> Policy:
    """The policy with its origin and its calibration results."""
    result = measured.get(best.policy.fingerprint(), {})
    origin = {"method": "searched", "origin": best.label, "study": best.phase, "trial": best.number, "seed": seed}
    return best.policy.replace(
        limit=limit,
        provenance={**best.policy.provenance, **origin},
        results={"calibration_kl": best.kl, **({"calibration_top1": result["top1"]} if result.get("top1") is not None else {})},
    )
