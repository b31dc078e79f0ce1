"""Results: what a trial keeps of its policy and its losses, written as JSON values and checked when it is read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from headscope.errors import DataError
from headscope.policy import HEAD_TENSORS, ModelShape, Policy
from headscope.tuning.propose.samplers import INCUMBENT, RETRIES
from headscope.tuning.study.workers import ERROR, RESULT

Bytes = Annotated[int, Field(ge=0, lt=2**63)]  # what a table's column holds
_ELSEWHERE = "choose another folder for `out`, or another `storage`, to begin a new study"


class Result(BaseModel):
    """What every measured trial keeps.

    Attributes:
        label: where its policy came from.
        kl: loss on the calibration images, nats a token; of a trial that was given up, on those that were replayed.
        cache_bytes: of one image; None where it was given up.
        policy: JSON text, see `dump_policy`.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    label: str
    kl: FiniteFloat
    cache_bytes: Bytes | None
    policy: str


class ImageResult(Result):
    """What trials keep that were measured image by image.

    Attributes:
        top1: share of positions whose most likely code is that of the full cache; None where it was given up.
        given_up: whether measuring ended before the last image, as the policy was worse than the best one.
        kl_by_image: loss on each image that was replayed, nats a token.
        fingerprint: of the policy.
        seconds: that measuring took; 0 where it was repeated.
        repeated: whether an equal policy had been measured before, whose losses these are.
    """

    top1: FiniteFloat | None
    given_up: bool
    kl_by_image: list[FiniteFloat]
    fingerprint: str
    seconds: FiniteFloat
    repeated: bool


class _Queued(BaseModel):
    """Of a trial's system attributes: the numbers that it was queued with."""

    model_config = ConfigDict(strict=True)

    fixed_params: dict[str, FiniteFloat] = {}


class _Kept(BaseModel):
    """What every trial keeps, in whatever state."""

    model_config = ConfigDict(strict=True)

    params: dict[str, FiniteFloat]
    user_attrs: dict[str, Any]
    system_attrs: _Queued
    intermediate_values: dict[int, float]
    values: list[FiniteFloat] | None


class Checked:
    """Reads the trials of a study, each once.

    Args:
        study: whose trials.
        kind: what their results have to look like.
        where: the storage, for messages.
    """

    def __init__(self, study: optuna.Study, kind: type[Result], where: str) -> None:
        self.study, self.kind, self.where, self.objectives = study, kind, where, len(study.directions)
        self._known: dict[int, FrozenTrial] = {}

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The study's trials in these states (default: in any).

        Raises:
            DataError: one holds what no search writes.
        """
        found = self.study.get_trials(deepcopy=False, states=states or None)
        for trial in found:
            if self._known.get(trial.number) is not trial:
                self._check(trial)
                self._known[trial.number] = trial
        return found

    def _check(self, trial: FrozenTrial) -> None:
        try:
            _Kept.model_validate({name: getattr(trial, name) for name in _Kept.model_fields})
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or RESULT in trial.user_attrs:
                self.kind.model_validate(trial.user_attrs.get(RESULT))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"]) or RESULT
            raise self._unfit(trial, f"{place}: {first['msg']}, found {first['input']!r:.60}") from None
        if trial.state == TrialState.COMPLETE and len(trial.values or ()) != self.objectives:
            raise self._unfit(trial, f"values: expected {self.objectives}, found {trial.values!r:.60}")
        if not isinstance(trial.user_attrs.get(RETRIES, 0), int):
            raise self._unfit(trial, f"{RETRIES}: expected a trial's number, found {trial.user_attrs[RETRIES]!r:.60}")

    def policy(self, trial: FrozenTrial, shape: ModelShape) -> Policy:
        """The policy of a measured trial.

        Raises:
            DataError: it holds none.
            PolicyMismatch: it does not fit the model.
        """
        try:
            return load_policy_text(trial.user_attrs[RESULT]["policy"], shape)
        except (ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
            raise self._unfit(trial, f"policy: {type(error).__name__}: {str(error)[:60]!r}") from None

    def _unfit(self, trial: FrozenTrial, what: str) -> DataError:
        return DataError(f"{self.where}: trial {trial.number} holds what no search keeps ({what}); {_ELSEWHERE}.")


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
        bits=torch.tensor(kept["bits"], dtype=torch.uint8) if "bits" in kept else 16,
        prompt=torch.tensor(kept["prompt"], dtype=torch.uint8) if "prompt" in kept else 1,
        score=torch.tensor(kept["score"], dtype=torch.uint8) if "score" in kept else 0,
        stride=kept["stride"],
        prefix=kept["prefix"],
        semantic_score=torch.tensor(kept["semantic_score"], dtype=torch.float32),
    )


def claim(study: optuna.Study, identity: Mapping[str, Any], where: str, objectives: int = 1) -> None:
    """Write what the study belongs to, or refuse a study of something else.

    Args:
        study: new, or one that stood in the storage.
        identity: what it belongs to, JSON values by name.
        where: the storage, for messages.
        objectives: numbers that a trial minimises.

    Raises:
        DataError: a study of something else, or of other objectives.
    """
    if study.directions != [StudyDirection.MINIMIZE] * objectives:
        said = ", ".join(direction.name.lower() for direction in study.directions)
        raise DataError(f"{where}: the study's objectives are another search's ({said}); {_ELSEWHERE}.")
    text = json.dumps(dict(identity), sort_keys=True)
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", text)
    elif found != text:
        raise DataError(f"{where}: the study was made for {_other(found, json.loads(text))}; {_ELSEWHERE}.")


def _other(found: Any, now: Mapping[str, Any]) -> str:
    try:
        before = json.loads(found)
        name = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    except (ValueError, TypeError, AttributeError, StopIteration, RecursionError):
        return f"something else ({found!r:.60})"
    return f"another {repr(name).strip(chr(39)):.60} ({before.get(name)!r:.60}, now {now.get(name)!r:.60})"


def is_proposal(trial: FrozenTrial) -> bool:
    """Whether a proposal was finished: measured, given up, or failed for a reason that stands in it."""
    if trial.user_attrs.get(INCUMBENT):
        return False
    done = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return done or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)
