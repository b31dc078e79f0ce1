"""Trials: an Optuna study that proposes points of a space, measures their policies, and keeps both so that it continues.

Samplers only propose, the storage only keeps, the replay only measures. What continuing needs is in the storage: each
trial carries its policy, its losses picture by picture, and the fingerprint by which equal policies are measured once.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.trial import FrozenTrial, TrialState

from headscope.errors import DataError, HeadscopeError
from headscope.policy.policy import HEAD_TENSORS, ModelShape, Policy
from headscope.tuning.replay import Measures
from headscope.tuning.space import Space

# TPE proposes at random until it has seen this many measured points (the incumbents count).
STARTUP_TRIALS = 8


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
        name: of the study, also the phase's name in tables.
        identity: what the study belongs to; a stored study of something else is refused.
        storage: SQLite file, or None to keep nothing.
        seed: with the number of finished trials it seeds every proposal, so that a continued study goes on as an
            uninterrupted one would (a resumed sampler of the same seed would repeat its first proposals).
        measured: results by fingerprint, shared between the books of a search.

    Raises:
        DataError: the file is not a study, or one of another model, limit or calibration set.
    """

    def __init__(
        self,
        replay: Measures,
        shape: ModelShape,
        name: str,
        identity: Mapping[str, Any],
        storage: str | Path | None,
        seed: int,
        measured: dict[str, dict[str, Any]],
    ) -> None:
        self.replay, self.shape, self.name, self.seed, self.measured = replay, shape, name, seed, measured
        with quiet_optuna():
            self.study = _open(name, storage)
            _claim(self.study, identity, storage)
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state == TrialState.RUNNING:  # its process died: the proposal is made again
                    self.study.set_user_attr(f"interrupted_{trial.number}", True)
                    self.study.tell(trial.number, state=TrialState.FAIL)
                if trial.state == TrialState.COMPLETE and not trial.user_attrs["repeated"]:
                    measured[trial.user_attrs["fingerprint"]] = {
                        key: trial.user_attrs[key] for key in ("kl", "top1", "kl_by_picture", "cache_bytes")
                    }

    def incumbent(self, label: str, policy: Policy, space: Space, values: Mapping[str, float] | None) -> Found:
        """Measure `policy` and keep it; where it is a point of the space (`values`), the sampler learns from it too."""
        for trial in self._complete():
            if trial.user_attrs["label"] == label:
                return self._found(trial)
        attributes = {"label": label, **self._measure(policy)}
        distributions = {number.name: number.distribution() for number in space.numbers}
        with quiet_optuna():
            self.study.add_trial(
                optuna.trial.create_trial(
                    value=attributes["kl"],
                    params={name: _plain(values[name], distributions[name]) for name in distributions} if values else {},
                    distributions=distributions if values else {},
                    user_attrs=attributes,
                )
            )
        return Found(label, self.name, policy, attributes["kl"], len(self._complete()) - 1)

    def propose(self, space: Space) -> Found | None:
        """One trial: ask, build, measure, keep. None where it failed (kept as failed, with the reason).

        KeyboardInterrupt leaves a study that continues: the unfinished proposal is made again next time.
        """
        with quiet_optuna():
            self.study.sampler = _sampler(self.seed, self.sampled)
            trial = self.study.ask()
            try:
                policy = space.build({number.name: number.suggest(trial) for number in space.numbers})
                attributes = {"label": f"{self.name} trial", **self._measure(policy)}
            except (HeadscopeError, RuntimeError, ValueError) as error:
                trial.set_user_attr("error", f"{type(error).__name__}: {error}")
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            except BaseException:
                self.study.set_user_attr(f"interrupted_{trial.number}", True)
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, attributes["kl"])
        return Found(attributes["label"], self.name, policy, attributes["kl"], trial.number)

    @property
    def sampled(self) -> int:
        """Proposals finished so far, failed ones included, incumbents and interrupted ones not."""
        interrupted = self.study.user_attrs
        return sum(
            not _is_incumbent(trial) and f"interrupted_{trial.number}" not in interrupted
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        )

    def best(self) -> Found | None:
        """The least loss measured in this book; the earlier one where two are equal."""
        complete = self._complete()
        return self._found(min(complete, key=lambda trial: (trial.value, trial.number))) if complete else None

    def unimproved(self, margin: float = 1e-3) -> int:
        """Proposals since the least loss last fell by more than `margin` of itself."""
        best, since = float("inf"), 0
        for trial in self.study.get_trials(deepcopy=False):
            if trial.value is not None and trial.value < best * (1 - margin):
                best, since = trial.value, 0
            elif not _is_incumbent(trial) and trial.state.is_finished():
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
        """One row a trial: phase, number, label, state, kl, top1, cache_bytes, seconds, repeated, error and the numbers."""
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            kept = {name: trial.user_attrs.get(name) for name in ("label", "kl", "top1", "cache_bytes", "seconds")}
            rows.append(
                {
                    "phase": self.name,
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    **kept,
                    "repeated": bool(trial.user_attrs.get("repeated", False)),
                    "error": trial.user_attrs.get("error", ""),
                    "fingerprint": trial.user_attrs.get("fingerprint", ""),
                    **{f"number_{name}": float(value) for name, value in trial.params.items()},
                }
            )
        return pd.DataFrame(rows)

    def _measure(self, policy: Policy) -> dict[str, Any]:
        """What a trial keeps of a measurement, JSON values only."""
        fingerprint = policy.fingerprint()
        repeated = fingerprint in self.measured
        seconds = 0.0
        if not repeated:
            result = self.replay.measure(policy)
            if not np.isfinite(result.kl):
                raise ValueError(f"the replay lost {result.kl} nats a token: the model's logits are not finite")
            seconds = result.seconds
            self.measured[fingerprint] = {
                "kl": result.kl,
                "top1": result.top1,
                "kl_by_picture": result.kl_by_picture.tolist(),
                "cache_bytes": result.cache_bytes,
            }
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
        attributes = trial.user_attrs
        policy = load_policy_text(attributes["policy"], self.shape)
        return Found(attributes["label"], self.name, policy, attributes["kl"], trial.number)


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


def _open(name: str, storage: str | Path | None) -> optuna.Study:
    url = None
    if storage is not None:
        path = Path(storage)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be made ({error.strerror}); choose another folder with --out.") from error
        url = f"sqlite:///{path}"
    try:
        return optuna.create_study(study_name=name, storage=url, direction="minimize", load_if_exists=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{storage}: not a usable study file ({reason}); choose another folder with --out.") from error


def _claim(study: optuna.Study, identity: Mapping[str, Any], storage: str | Path | None) -> None:
    """Write what the study belongs to, or refuse a study of something else."""
    text = json.dumps(dict(identity), sort_keys=True)
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", text)
    elif found != text:
        before, now = json.loads(found), json.loads(text)
        name = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        raise DataError(
            f"{storage}: the study was made for another {name} ({before.get(name)}, now {now.get(name)}); "
            "choose another folder with --out to begin a new one."
        )


def _sampler(seed: int, turn: int) -> optuna.samplers.BaseSampler:
    digest = hashlib.sha256(f"{seed}/{turn}".encode()).digest()
    own = int.from_bytes(digest[:4], "little")
    return optuna.samplers.TPESampler(seed=own, multivariate=True, n_startup_trials=STARTUP_TRIALS)


def _plain(value: float, distribution: optuna.distributions.BaseDistribution) -> float:
    return int(value) if isinstance(distribution, optuna.distributions.IntDistribution) else float(value)


def _is_incumbent(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("label", "trial").split(" ")[-1] != "trial"
