"""Trials: an Optuna study that proposes points of a space, measures their policies, and keeps both so that it continues.

Samplers only propose, the storage only keeps, the replay only measures. What continuing needs is in the storage: each
trial carries its policy, its losses picture by picture, and the fingerprint by which equal policies are measured once.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from headscope.errors import DataError, HeadscopeError
from headscope.policy.policy import HEAD_TENSORS, ModelShape, Policy
from headscope.tuning.replay import GivenUp, Measures
from headscope.tuning.samplers import INCUMBENT, Reseeded
from headscope.tuning.space import Space
from headscope.tuning.storages import again, marked, reap

# What a trial keeps in its attributes, and of a measurement what equal policies share.
RESULT, ERROR = "result", "error"
MEASURED = ("kl", "top1", "cache_bytes", "given_up", "kl_by_picture")

# A policy is given up once it is worse than the best one, picture by picture, at this level (one-sided Wilcoxon test),
# and not before so many pictures were replayed.
PRUNED_AT, PRUNED_AFTER = 0.1, 8
# A worker that waits for the last trials of others looks again after so many seconds.
WAIT = 0.5


@dataclass(frozen=True)
class Found:
    """One measured policy: where it came from and what it lost (`kl` in nats a token on the calibration pictures)."""

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
        name: the phase, in tables. study: before it in the study's name, where one storage keeps several searches.
        identity: what the study belongs to; a stored study of something else is refused.
        storage: of `open_storage`. where: its name for messages.
        seed: with the turn of a proposal it seeds the sampler (`Reseeded`).
        measured: results by fingerprint, shared between the books of a search.
        sampler: one of `SAMPLERS`.
        prune: give a policy up as soon as it is worse than the best one, picture by picture.

    Raises:
        DataError: the file is not a study, or one of another model, limit or calibration set.
    """

    def __init__(
        self,
        replay: Measures,
        shape: ModelShape,
        name: str,
        identity: Mapping[str, Any],
        storage: BaseStorage | None,
        seed: int,
        measured: dict[str, dict[str, Any]],
        *,
        where: str = "the study",
        study: str = "",
        sampler: str = "tpe",
        prune: bool = True,
    ) -> None:
        self.replay, self.shape, self.name, self.seed, self.measured = replay, shape, name, seed, measured
        with quiet_optuna():
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=PRUNED_AT, n_startup_steps=PRUNED_AFTER)
            try:
                self.study = optuna.create_study(
                    study_name=study + name,
                    storage=storage or InMemoryStorage(),
                    direction="minimize",
                    load_if_exists=True,
                    sampler=Reseeded(sampler, seed),
                    pruner=pruner if prune else optuna.pruners.NopPruner(),
                )
            except SQLAlchemyError as error:
                reason = str(error).splitlines()[0]
                raise DataError(f"{where}: not a usable study file ({reason}); choose another folder with --out.") from error
            claim(self.study, identity, where)
            reap(self.study)
            self._learn()

    def incumbent(self, label: str, policy: Policy, space: Space, values: Mapping[str, float] | None) -> Found:
        """Measure `policy` and keep it; where it is a point of the space (`values`), the sampler learns from it too."""
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
                    intermediate_values=dict(enumerate(attributes["kl_by_picture"])),
                    user_attrs={INCUMBENT: True, RESULT: attributes},
                )
            )
        return Found(label, self.name, policy, attributes["kl"], len(self._complete()) - 1)

    def propose(self, space: Space) -> Found | None:
        """One trial: ask, build, measure, keep. None where it was given up or failed (kept so, with the reason).

        KeyboardInterrupt leaves a study that continues: the unfinished proposal is made again next time.
        """
        with quiet_optuna():
            trial = self.study.ask()
            with marked(trial):
                try:
                    policy = space.build({number.name: number.suggest(trial) for number in space.numbers})
                    attributes = {"label": f"{self.name} trial", **self._measure(policy, trial)}
                except (HeadscopeError, RuntimeError, ValueError) as error:
                    trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}")
                    self.study.tell(trial, state=TrialState.FAIL)
                    return None
                except BaseException:
                    self.study.tell(trial, state=TrialState.FAIL)
                    again(self.study, self.study.get_trials(deepcopy=False)[trial.number])
                    raise
                trial.set_user_attr(RESULT, attributes)
            if attributes["given_up"]:
                self.study.tell(trial, state=TrialState.PRUNED)
                return None
            self.study.tell(trial, attributes["kl"])
        return Found(attributes["label"], self.name, policy, attributes["kl"], trial.number)

    def settled(self, quota: int) -> bool:
        """Whether `quota` proposals are finished; waits for those that other processes are at, and queues dead ones again."""
        while self.sampled < quota:
            with quiet_optuna():
                reap(self.study)
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if self.sampled + len(running) < quota:
                return False
            time.sleep(WAIT)
        return True

    @property
    def sampled(self) -> int:
        """Proposals finished so far, given up and failed ones included, incumbents and interrupted ones not."""
        return sum(is_proposal(trial) for trial in self.study.get_trials(deepcopy=False))

    def best(self) -> Found | None:
        """The least loss measured in this book; the earlier one where two are equal."""
        complete = self._complete()
        return self._found(min(complete, key=lambda trial: (trial.value, trial.number))) if complete else None

    def unimproved(self, margin: float = 1e-3) -> int:
        """Proposals since the least loss last fell by more than `margin` of itself."""
        best, since = float("inf"), 0
        for trial in self.study.get_trials(deepcopy=False):
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

        The `kl` of a proposal that was given up (state `pruned`) is that of the `pictures` that were replayed.
        """
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            result = trial.user_attrs.get(RESULT, {})
            kept = {name: result.get(name) for name in ("label", "kl", "top1", "cache_bytes", "seconds")}
            rows.append(
                {
                    "phase": self.name,
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    **kept,
                    "pictures": len(result.get("kl_by_picture", ())),
                    "repeated": bool(result.get("repeated", False)),
                    "error": trial.user_attrs.get(ERROR, ""),
                    "fingerprint": result.get("fingerprint", ""),
                    **{f"number_{name}": float(value) for name, value in trial.params.items()},
                }
            )
        return pd.DataFrame(rows)

    def _learn(self) -> None:
        """Results that stand in the storage, so that equal policies are measured once."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            result = trial.user_attrs[RESULT]
            if not result["repeated"]:
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

            def watch(by_picture: torch.Tensor) -> None:
                for loss in by_picture.tolist():
                    if trial is not None:
                        trial.report(loss, len(losses))
                    losses.append(loss)
                if not np.isfinite(losses).all():
                    raise ValueError(f"the replay lost {losses[-1]} nats a token: the model's logits are not finite")
                if trial is not None and trial.should_prune():
                    raise GivenUp

            try:
                result = self.replay.measure(policy, watch)
            except GivenUp:
                found = {"kl": float(np.mean(losses)), "top1": None, "cache_bytes": None, "given_up": True}
                seconds = time.perf_counter() - began
            else:
                found = {"kl": result.kl, "top1": result.top1, "cache_bytes": result.cache_bytes, "given_up": False}
                seconds = result.seconds  # of the measurement itself, also where a `Remembered` one made it before
            self.measured[fingerprint] = {**found, "kl_by_picture": losses}
        elif trial is not None and known is not None:
            for number, loss in enumerate(known["kl_by_picture"]):
                trial.report(loss, number)
        return {
            **self.measured[fingerprint],
            "fingerprint": fingerprint,
            "policy": dump_policy(policy),
            "seconds": seconds,
            "repeated": repeated,
        }

    def _complete(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _found(self, trial: FrozenTrial) -> Found:
        result = trial.user_attrs[RESULT]
        policy = load_policy_text(result["policy"], self.shape)
        return Found(result["label"], self.name, policy, result["kl"], trial.number)


def dump_policy(policy: Policy) -> str:
    """A policy's numbers as JSON, for a trial's attributes (files are `policy.files`' affair)."""
    tensors = {name: getattr(policy, name).tolist() for name in HEAD_TENSORS}
    return json.dumps({"stride": policy.stride, "prefix": policy.prefix, **tensors})


def load_policy_text(text: str, shape: ModelShape) -> Policy:
    """The policy of `dump_policy`."""
    kept = json.loads(text)
    return Policy.uniform(
        shape,
        window=torch.tensor(kept["window"], dtype=torch.int32),
        heavy=torch.tensor(kept["heavy"], dtype=torch.int32),
        anchor=torch.tensor(kept["anchor"], dtype=torch.int32),
        decay=torch.tensor(kept["decay"], dtype=torch.float32),
        per_visit=torch.tensor(kept["per_visit"], dtype=torch.uint8),
        stride=kept["stride"],
        prefix=kept["prefix"],
        semantic_score=torch.tensor(kept["semantic_score"], dtype=torch.float32),
    )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's own log lines and notes on experimental arguments are not for our users; set here and put back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def claim(study: optuna.Study, identity: Mapping[str, Any], where: str) -> None:
    """Write what the study belongs to, or refuse a study of something else."""
    text = json.dumps(dict(identity), sort_keys=True)
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", text)
    elif found != text:
        before, now = json.loads(found), json.loads(text)
        name = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        raise DataError(
            f"{where}: the study was made for another {name} ({before.get(name)}, now {now.get(name)}); "
            "choose another folder with --out, or another --storage, to begin a new one."
        )


def _plain(value: float, distribution: optuna.distributions.BaseDistribution) -> float:
    return int(value) if isinstance(distribution, optuna.distributions.IntDistribution) else float(value)


def is_proposal(trial: FrozenTrial) -> bool:
    """Whether a proposal was finished: measured, given up, or failed for a reason that stands in it."""
    if trial.user_attrs.get(INCUMBENT):
        return False
    done = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return done or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)
