"""Trials: an Optuna study that proposes points of a space, measures their policies, and keeps both so that it continues.

Samplers only propose, the storage only keeps, the replay only measures. What continuing needs is in the storage: each
trial carries its policy, its losses image by image, and the fingerprint by which equal policies are measured once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FrozenTrial, TrialState

from headscope.errors import NumberError
from headscope.policy import ModelShape, Policy
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.measurement import PolicyEvaluator, Pruned
from headscope.tuning.propose.samplers import INCUMBENT, ReseededSampler
from headscope.tuning.propose.spaces import Space
from headscope.tuning.study.quiet import quiet_optuna
from headscope.tuning.study.results import Checked, ImageResult, claim, dump_policy, is_proposal
from headscope.tuning.study.storage import StudyStore, for_one
from headscope.tuning.study.workers import ERROR, RESULT, Watch, carried_out

# What equal policies share of a measurement.
MEASURED = ("kl", "top1", "cache_bytes", "given_up", "kl_by_image")

# A policy is given up once it is worse than the best one, image by image, at this level (one-sided Wilcoxon test),
# and not before so many images were replayed.
PRUNED_AT, PRUNED_AFTER = 0.1, 8
# A worker that waits for the last trials of others looks again after so many seconds.
WAIT = 0.5


@dataclass(frozen=True)
class Candidate:
    """One measured policy.

    Attributes:
        label: where it came from, such as "preset h2o" or "table trial".
        phase: whose study measured it.
        policy: the policy.
        kl: what it lost on the calibration images, nats a token.
        number: of its trial in that study.
    """

    label: str
    phase: str
    policy: Policy
    kl: float
    number: int


class TrialBook:
    """One Optuna study of a search, over one space.

    Args:
        replay: what measures policies.
        shape: the model that the policies are for.
        name: the phase, in tables and at the end of the study's name.
        store: where the study is kept.
        config: sampler, pruning, and the seed, which with a proposal's turn seeds the sampler (`ReseededSampler`).
        measured: results by fingerprint, shared between the books of a search.

    Raises:
        DataError: the file is not a study, or one of another model, limit or calibration set; it can't be read or written,
            now or later.
    """

    def __init__(
        self,
        replay: PolicyEvaluator,
        shape: ModelShape,
        name: str,
        store: StudyStore,
        config: SearchConfig,
        measured: dict[str, dict[str, Any]],
    ) -> None:
        self.replay, self.shape, self.name, self.seed, self.measured = replay, shape, name, config.seed, measured
        with quiet_optuna():
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=PRUNED_AT, n_startup_steps=PRUNED_AFTER)
            self.study = optuna.create_study(
                study_name=store.name + name,
                storage=store.storage,
                direction="minimize",
                load_if_exists=True,
                sampler=ReseededSampler(config.sampler, config.seed),
                pruner=pruner if config.prune else optuna.pruners.NopPruner(),
            )
            claim(self.study, store.identity, store.where)
            self._checked = Checked(self.study, ImageResult, store.where)
            self._learn()
            self._watch = Watch(self.study, alone=for_one(store.storage))
            self._watch.reap()

    def incumbent(self, label: str, policy: Policy, space: Space, values: Mapping[str, float] | None) -> Candidate:
        """Measure a policy and keep it; where it is a point of the space, the sampler learns from it too.

        Args:
            label: under which it is kept; one that stands there already is not measured again.
            policy: the policy.
            space: of this book.
            values: the policy's point in the space, by number; None where there is none.
        """
        for trial in self._complete():
            if trial.user_attrs[RESULT]["label"] == label:
                return self._found(trial)
        attributes = {"label": label, **self._measure(policy)}
        distributions = {number.name: number.distribution() for number in space.numbers}
        with quiet_optuna():
            self.study.add_trial(
                optuna.trial.create_trial(
                    value=attributes["kl"],
                    params={name: _plain(values[name], distributions[name]) for name in distributions} if values else {},
                    distributions=distributions if values else {},
                    intermediate_values=dict(enumerate(attributes["kl_by_image"])),
                    user_attrs={INCUMBENT: True, RESULT: attributes},
                )
            )
        return Candidate(label, self.name, policy, attributes["kl"], len(self._complete()) - 1)

    def propose(self, space: Space) -> Candidate | None:
        """One trial: ask, build, measure, keep.

        KeyboardInterrupt leaves a study that continues: the unfinished proposal is made again next time.

        Returns:
            None where it was given up or failed (kept so, with the reason), or was another process' meanwhile.

        Raises:
            NumberError: the model's logits are no numbers.
        """
        with quiet_optuna():
            trial, built = self.study.ask(), list[Policy]()

            def measure() -> tuple[dict[str, Any], list[float] | None]:
                built.append(space.build({number.name: number.suggest(trial) for number in space.numbers}))
                found = {"label": f"{self.name} trial", **self._measure(built[0], trial)}
                return found, None if found["given_up"] else [found["kl"]]

            result = carried_out(self.study, trial, measure)
        return None if result is None else Candidate(result["label"], self.name, built[0], result["kl"], trial.number)

    def settled(self, quota: int) -> bool:
        """Whether `quota` proposals are finished; waits for those that other processes are at, and queues dead ones again."""
        while self.sampled < quota:
            with quiet_optuna():
                self._watch.reap()
            running = self._checked.trials(TrialState.RUNNING)
            if self.sampled + len(running) < quota:
                return False
            time.sleep(WAIT)
        return True

    @property
    def sampled(self) -> int:
        """Proposals finished so far, given up and failed ones included, incumbents and interrupted ones not."""
        return sum(is_proposal(trial) for trial in self._checked.trials())

    def best(self) -> Candidate | None:
        """The least loss measured in this book; the earlier one where two are equal."""
        complete = self._complete()
        return self._found(min(complete, key=lambda trial: (trial.value, trial.number))) if complete else None

    def leading(self, count: int) -> list[Candidate]:
        """The least losses measured in this book, the least first."""
        complete = sorted(self._complete(), key=lambda trial: (trial.value, trial.number))
        return [self._found(trial) for trial in complete[:count]]

    def unimproved(self, margin: float = 1e-3) -> int:
        """Proposals since the least loss last fell by more than `margin` of itself."""
        best, since = float("inf"), 0
        for trial in self._checked.trials():
            if trial.state == TrialState.COMPLETE and trial.value is not None and trial.value < best * (1 - margin):
                best, since = trial.value, 0
            elif is_proposal(trial):
                since += 1
        return since

    def importances(self, space: Space) -> dict[str, float]:
        """Share of the loss's variance that each number explains (fANOVA); empty while there are too few trials."""
        names = [number.name for number in space.numbers]
        usable = [trial for trial in self._complete() if set(names) <= set(trial.params)]
        varied = [name for name in names if len({trial.params[name] for trial in usable}) > 1]
        if len(usable) < 4 or not varied or len({trial.value for trial in usable}) < 2:
            return {}
        with quiet_optuna():
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.seed)
            shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator, params=varied)
        return {name: float(share) for name, share in shares.items()}

    def table(self) -> pd.DataFrame:
        """One row a trial: phase, number, label, state, kl, top1, cache_bytes, seconds, repeated, error and the numbers.

        The `kl` of a proposal that was given up (state `pruned`) is that of the `images` that were replayed.
        """
        rows = []
        for trial in self._checked.trials():
            result = trial.user_attrs.get(RESULT, {})
            kept = {name: result.get(name) for name in ("label", "kl", "top1", "cache_bytes", "seconds")}
            rows.append(
                {
                    "phase": self.name,
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    **kept,
                    "images": len(result.get("kl_by_image", ())),
                    "repeated": bool(result.get("repeated", False)),
                    "error": str(trial.user_attrs.get(ERROR, "")).encode(errors="replace").decode(),
                    "fingerprint": result.get("fingerprint", ""),
                    **{f"number_{name}": float(value) for name, value in trial.params.items()},
                }
            )
        return pd.DataFrame(rows)

    def _learn(self) -> None:
        """Results that stand in the storage, so that equal policies are measured once."""
        for trial in self._checked.trials():
            result = trial.user_attrs.get(RESULT, {})
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and not result["repeated"]:
                self.measured[result["fingerprint"]] = {name: result[name] for name in MEASURED}

    def _measure(self, policy: Policy, trial: optuna.Trial | None = None) -> dict[str, Any]:
        """What a trial keeps of a measurement, JSON values only. With a trial, its losses are told to it as they come."""
        fingerprint = policy.fingerprint()
        known = self.measured.get(fingerprint)
        repeated = known is not None and (trial is not None or not known["given_up"])
        seconds = 0.0
        if not repeated:
            began = time.perf_counter()
            losses: list[float] = []

            def watch(by_image: torch.Tensor) -> None:
                for loss in by_image.tolist():
                    if trial is not None:
                        trial.report(loss, len(losses))
                    losses.append(loss)
                if not np.isfinite(losses).all():
                    raise NumberError(
                        f"The replay lost {losses[-1]} nats a token: the model's logits are not finite; "
                        "load the model in another dtype, or another checkpoint."
                    )
                if trial is not None and trial.should_prune():
                    raise Pruned

            try:
                result = self.replay.measure(policy, watch)
            except Pruned:
                found = {"kl": float(np.mean(losses)), "top1": None, "cache_bytes": None, "given_up": True}
                seconds = time.perf_counter() - began
            else:
                found = {"kl": result.kl, "top1": result.top1, "cache_bytes": result.cache_bytes, "given_up": False}
                seconds = result.seconds  # of the measurement itself, also where a `MemoizedReplay` one made it before
            self.measured[fingerprint] = {**found, "kl_by_image": losses}
        elif trial is not None and known is not None:
            for number, loss in enumerate(known["kl_by_image"]):
                trial.report(loss, number)
        return {
            **self.measured[fingerprint],
            "fingerprint": fingerprint,
            "policy": dump_policy(policy),
            "seconds": seconds,
            "repeated": repeated,
        }

    def _complete(self) -> list[FrozenTrial]:
        return self._checked.trials(TrialState.COMPLETE)

    def _found(self, trial: FrozenTrial) -> Candidate:
        result = trial.user_attrs[RESULT]
        return Candidate(result["label"], self.name, self._checked.policy(trial, self.shape), result["kl"], trial.number)


def _plain(value: float, distribution: optuna.distributions.BaseDistribution) -> float:
    return int(value) if isinstance(distribution, optuna.distributions.IntDistribution) else float(value)
