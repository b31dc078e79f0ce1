"""The phases of a study: from a table, graded scores and a byte limit to the best policy measured on the calibration images.

In order: the presets and the solver's answers (each fitting stride, several decays) are measured and stay as incumbents; a
sixth of the trials looks for the best class-level policy (`ClassSpace`), half of them work around the solver's answer
(`TableSpace`), a third around the best policy so far (`GroupSpace`); without a table, one half and the other of the first
and the last. The result is among the best of everything measured and never above a preset: of the last few candidates the one
that loses least on recorded images and on those that it makes itself, taken together.

Several processes may work on one storage: each measures the incumbents that nobody has measured yet, and enters a phase
when the one before is finished by all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
import pandas as pd
import torch

from headscope.errors import BudgetError
from headscope.policy import Limit, Policy
from headscope.progress import Progress
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.measurement import PolicyEvaluator
from headscope.tuning.measure.options import ANCHOR, Losses
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.group_space import GroupSpace
from headscope.tuning.propose.knapsack import NODES
from headscope.tuning.propose.spaces import Space, TableSpace, neutral
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.study.outcome import SearchResult
from headscope.tuning.study.phase import Candidate, TrialBook
from headscope.tuning.study.storage import StudyStore, check_sampler, for_one

# Raised when the meaning of a study's numbers changes: a study of another version is not continued.
DEFINITIONS = 6
# Tried with the solver's answer: scores that fade faster than the table's, and first image tokens that all heads keep.
SOLVER_DECAYS = (0.85, 0.6)
SOLVER_ANCHORS = (0, 2, 4)
# How many of the best are compared on images that they make themselves, and the labels that say a preset.
LAST, PRESET = 3, "preset"
BY_CLASS, AROUND_SOLVER, AROUND_BEST = "classes", "table", "groups"


@dataclass
class PhasedStudy:
    """A study of one limit, phase by phase.

    Attributes:
        replay: the calibration images; figures to report come from others.
        limit: the byte limit.
        losses: of the sensitivity table; None for Optuna alone, by classes and by groups of heads.
        semantic_score: float32 [layers, kv_heads] in [0, 1], from the head classes.
        config: trials, seed, sampler and so on.
        store: where the study is kept; the same study continues it.
        presets: swept presets by name, measured first.
        progress: told the proposals made.
        free: what a policy loses on images that it makes itself, nats a token: the last candidates are chosen by that and by
            what they lose here; without it by the latter alone.
    """

    replay: PolicyEvaluator
    limit: Limit
    losses: Losses | None
    semantic_score: torch.Tensor
    config: SearchConfig
    store: StudyStore
    presets: Mapping[str, Policy] = field(default_factory=dict)
    progress: Progress | None = None
    free: Callable[[Policy], float] | None = None

    def __post_init__(self) -> None:
        config, spec = self.config, self.limit.spec
        check_sampler(config.sampler, self.store.where, alone=for_one(self.store.storage))
        self.semantic_score = self.semantic_score.float()
        self.strides = fitting_strides(self.limit, config.strides)
        self.store = self.store.belonging(
            definitions=DEFINITIONS,
            weights=spec.shape.weights,
            bytes=self.limit.bytes,
            **spec.to_dict(),
            seed=config.seed,
            sampler=config.sampler,
            buckets=config.buckets,
            prune=config.prune,
            bits=config.bits,
            prompt=config.prompt,
            score=config.score,
        )
        self._books: list[tuple[TrialBook, Space]] = []
        self._measured: dict[str, dict[str, Any]] = {}
        self._incumbents: dict[str, float] = {}
        self._solved: list[Candidate] = []
        self._made = _Counter(config.trials, self.progress)

    def run(self, ready: Callable[[], None] | None = None) -> SearchResult:
        """Measure the incumbents, then propose; a continued study makes only what is missing.

        Args:
            ready: called once the incumbents are measured: the moment for other processes to join.

        Raises:
            BudgetError: nothing fits the limit.
            DataError: the storage holds a study of something else.
        """
        started = time.monotonic()
        classes = ClassSpace(self.limit, self.semantic_score, self.strides, self.config.each_bits)
        by_class = self._book(BY_CLASS, classes)
        for name, policy in self.presets.items():
            self._keep(by_class.incumbent(f"{PRESET} {name}", policy, classes, classes.locate(policy)))
        by_table, table = None, self._table_space(classes)
        if table is not None:
            by_table = self._book(AROUND_SOLVER, table)
            self._solved = _solver_answers(by_table, table)
            for found in self._solved:
                self._keep(found)
        if ready is not None:
            ready()
        first, second, last = self._shares(by_table is not None)
        self._propose(by_class, classes, first)
        if by_table is not None and table is not None:
            best_class = by_class.best()
            table.towards = table.towards if best_class is None else best_class.policy
            self._propose(by_table, table, second)
        self._around_the_best(last)
        return self._result(time.monotonic() - started)

    def _book(self, phase: str, space: Space) -> TrialBook:
        book = TrialBook(self.replay, self.limit.spec.shape, phase, self.store, self.config, self._measured)
        self._books.append((book, space))
        return book

    def _keep(self, found: Candidate) -> None:
        self._incumbents[found.label] = found.kl

    def _table_space(self, classes: ClassSpace) -> TableSpace | None:
        if self.losses is None:
            return None
        towards = next(iter(self.presets.values()), None) or classes.build(neutral(classes))
        score, buckets = self.semantic_score, self.config.buckets
        return TableSpace(self.limit, score, self.strides, self.losses, towards=towards, buckets=buckets)

    def _shares(self, with_table: bool) -> tuple[int, int, int]:
        """Trials by phase."""
        trials = self.config.trials
        first, last = (trials // 6, trials // 3) if with_table else (trials // 2, trials - trials // 2)
        return first, trials - first - last, last

    def _around_the_best(self, quota: int) -> None:
        """The last phase; books of the same search with fewer trials, around another policy, count too."""
        best = _best(self._books)
        space = GroupSpace(self.limit, self.semantic_score, best.policy, self.config.buckets)
        phase, prefix = f"{AROUND_BEST} {best.policy.fingerprint()[:8]}", self.store.name
        there = [
            name.removeprefix(prefix) for name in optuna.get_all_study_names(self.store.storage) if name.startswith(prefix)
        ]
        for other in there:
            if other.startswith(AROUND_BEST) and other != phase:
                self._book(other, space)
        book = self._book(phase, space)
        book.incumbent(best.label, best.policy, space, neutral(space))
        self._propose(book, space, quota)

    def _propose(self, book: TrialBook, space: Space, quota: int) -> None:
        seen, patience = book.sampled, self.config.patience
        self._made.step(seen, book.best())
        while not book.settled(quota):
            if patience and book.unimproved() >= patience:
                left = quota - book.sampled
                self._made.stopped.append(f"{book.name}: {patience} proposals in a row found nothing better; {left} not made")
                self._made.step(max(left, 0), book.best())
                return
            book.propose(space)
            now = book.sampled
            self._made.step(now - seen, book.best())
            seen = now

    def _result(self, seconds: float) -> SearchResult:
        (best, candidates), config = self._chosen(), self.config
        return SearchResult(
            policy=self._signed(best),
            kl=best.kl,
            label=best.label,
            incumbents=self._incumbents,
            trials=pd.concat([book.table() for book, _ in self._books], ignore_index=True),
            importances={book.name: book.importances(space) for book, space in self._books},
            presets=dict(self.presets),
            solver=min(self._solved, key=lambda found: found.kl, default=None),
            stopped="; ".join(self._made.stopped),
            dropped_strides=[stride for stride in config.strides or [] if stride not in self.strides],
            seconds=seconds,
            settings={
                "trials_asked": config.trials,
                "strides": self.strides,
                "images": len(self.replay),
                "quick": config.quick,
                "candidates": candidates,
                **self.store.identity,
            },
        )

    def _chosen(self) -> tuple[Candidate, list[dict[str, Any]]]:
        """The best of the LAST candidates by both losses, and what was found of each; none loses more than the best preset."""
        least = min((loss for label, loss in self._incumbents.items() if label.startswith(PRESET)), default=float("inf"))
        found: dict[str, Candidate] = {}
        for candidate in sorted((each for book, _ in self._books for each in book.leading(LAST)), key=lambda each: each.kl):
            if candidate.kl <= least:
                found.setdefault(candidate.policy.fingerprint(), candidate)
        last = list(found.values())[:LAST]
        if self.free is None or len(last) < 2:
            return _best(self._books), []
        told: list[dict[str, Any]] = []
        for done, one in enumerate(last):
            facts = {"label": one.label, "fingerprint": one.policy.fingerprint(), "kl": one.kl}
            told.append(facts | {"free_kl": self.free(one.policy)})
            if self.progress is not None:
                self.progress("last candidates on their own images", done + 1, len(last))
        return min(zip(last, told, strict=True), key=lambda pair: pair[1]["kl"] + pair[1]["free_kl"])[0], told

    def _signed(self, best: Candidate) -> Policy:
        """The policy with its origin and its calibration results."""
        top1 = self._measured.get(best.policy.fingerprint(), {}).get("top1")
        origin = {"method": "searched", "origin": best.label, "study": best.phase, "trial": best.number}
        return best.policy.replace(
            limit=self.limit,
            provenance={**best.policy.provenance, **origin, "seed": self.config.seed},
            results={"calibration_kl": best.kl, **({} if top1 is None else {"calibration_top1": top1})},
        )


def _best(books: Sequence[tuple[TrialBook, Space]]) -> Candidate:
    """The least loss of all books; of equals the one of the earlier phase."""
    candidates = [found for book, _ in books if (found := book.best())]
    if not candidates:
        raise BudgetError("Not one policy could be measured under this limit; the reasons stand in trials.parquet.")
    return min(candidates, key=lambda found: found.kl)


@dataclass
class _Counter:
    """Proposals made over all phases, for the progress display and the reasons of early ends."""

    trials: int
    progress: Progress | None
    made: int = 0
    least: float = float("inf")
    stopped: list[str] = field(default_factory=list)

    def step(self, count: int, best: Candidate | None) -> None:
        self.made += count
        if best is not None:
            self.least = min(self.least, best.kl)
        if self.progress is not None:
            note = f"least KL {self.least:.4f}" if self.least < float("inf") else ""
            self.progress("trials", self.made, self.trials, note)


def _solver_answers(book: TrialBook, space: TableSpace) -> list[Candidate]:
    """Measure the solver's answer at every fitting stride, then the best of these with scores that fade faster than the
    table's, then with other numbers of anchors: one number after the other, as they hardly depend on each other.
    """
    exact = replace(space, nodes=NODES)
    found: list[tuple[Candidate, dict[str, float]]] = []

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
