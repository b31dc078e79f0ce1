"""The front: the least loss for every number of bytes, by one two-objective study over the limit itself.

A point of the space is a share of the plain cache and a point of `TableSpace` at that share; NSGA-II keeps what no other
policy beats in both loss and bytes. The solver's answers at every asked share, and whatever else was found there, come
first, so the front is never above them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from headscope.errors import BudgetError, HeadscopeError
from headscope.policy.budget import Limit
from headscope.policy.policy import Policy
from headscope.tuning.replay import Measures
from headscope.tuning.samplers import INCUMBENT, Reseeded
from headscope.tuning.space import Number, TableSpace, neutral
from headscope.tuning.storages import again, marked, reap
from headscope.tuning.trials import ERROR, RESULT, claim, dump_policy, is_proposal, load_policy_text, quiet_optuna

SHARE = "share"


@dataclass(frozen=True)
class Front:
    """Attributes: points: one row a measured policy: label, kl, cache_bytes, share, on_front. policies: by row."""

    points: pd.DataFrame
    policies: list[Policy]

    def under(self, nbytes: int) -> int | None:
        """The row of the least loss within `nbytes` a picture; None where nothing is that small."""
        fits = self.points[self.points["cache_bytes"] <= nbytes]
        return None if fits.empty else int(fits["kl"].idxmin())


def search_the_front(
    replay: Measures,
    space_at: Callable[[float], TableSpace],
    shares: Mapping[str, float],
    incumbents: Mapping[str, Policy],
    *,
    trials: int = 100,
    seed: int = 0,
    storage: BaseStorage | None = None,
    study: str = "",
    identity: Mapping[str, Any] | None = None,
    where: str = "the study",
    progress: Callable[[int, int, float], None] | None = None,
) -> Front:
    """Measure the incumbents and the solver's answer at every share, then let NSGA-II propose.

    Args:
        space_at: share of the plain cache -> the space under that limit. shares: asked ones, by name.
        incumbents: policies by name that are measured first.
        storage, study, where, identity: as for `TrialBook`; the same call continues.

    Raises:
        BudgetError: nothing fits the largest share.
    """
    low, high = min(shares.values()), max(shares.values())
    with quiet_optuna():
        made = optuna.create_study(
            study_name=f"{study}front",
            storage=storage or InMemoryStorage(),
            directions=["minimize", "minimize"],
            load_if_exists=True,
            sampler=Reseeded("nsga-ii", seed),
        )
        claim(made, {"shares": sorted(shares.values()), **(identity or {})}, where)
        reap(made)
    share = Number(SHARE, low, high, high)
    for name, policy in incumbents.items():
        _incumbent(made, replay, name, policy, share, None, None)
    for name, asked in shares.items():
        try:
            space = space_at(asked)
            policy = space.build(neutral(space))
        except BudgetError:
            continue
        _incumbent(made, replay, f"solver at {name}", policy, share, space, asked)
    while (done := sum(is_proposal(trial) for trial in made.get_trials(deepcopy=False))) < trials:
        with quiet_optuna():
            _propose(made, replay, share, space_at)
        if progress is not None:
            progress(done + 1, trials, float("nan"))
    return _front(made, space_at(high))


def _incumbent(
    study: optuna.Study,
    replay: Measures,
    label: str,
    policy: Policy,
    share: Number,
    space: TableSpace | None,
    asked: float | None,
) -> None:
    known = study.get_trials(deepcopy=False)
    if any(trial.user_attrs.get(RESULT, {}).get("label") == label for trial in known):
        return
    result = {"label": label, **_measured(replay, policy)}
    values = {} if space is None or asked is None else {share.name: asked, **neutral(space)}
    numbers = () if space is None else (share, *space.numbers)
    with quiet_optuna():
        study.add_trial(
            optuna.trial.create_trial(
                values=[result["kl"], result["cache_bytes"]],
                params={n.name: int(values[n.name]) if n.whole else values[n.name] for n in numbers},
                distributions={number.name: number.distribution() for number in numbers},
                user_attrs={INCUMBENT: True, RESULT: result},
            )
        )


def _propose(study: optuna.Study, replay: Measures, share: Number, space_at: Callable[[float], TableSpace]) -> None:
    reap(study)
    trial = study.ask()
    with marked(trial):
        try:
            space = space_at(share.suggest(trial))
            policy = space.build({number.name: number.suggest(trial) for number in space.numbers})
            result = {"label": "front trial", **_measured(replay, policy)}
        except (HeadscopeError, RuntimeError, ValueError) as error:
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}")
            study.tell(trial, state=TrialState.FAIL)
            return
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            again(study, study.get_trials(deepcopy=False)[trial.number])
            raise
        trial.set_user_attr(RESULT, result)
    study.tell(trial, [result["kl"], result["cache_bytes"]])


def _measured(replay: Measures, policy: Policy) -> dict[str, Any]:
    found = replay.measure(policy)
    if not np.isfinite(found.kl):
        raise ValueError(f"the replay lost {found.kl} nats a token: the model's logits are not finite")
    return {"kl": found.kl, "cache_bytes": found.cache_bytes, "policy": dump_policy(policy)}


def _front(study: optuna.Study, space: TableSpace) -> Front:
    trials: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    results = [trial.user_attrs[RESULT] for trial in trials]
    points = pd.DataFrame(
        {
            "label": [result["label"] for result in results],
            "kl": [result["kl"] for result in results],
            "cache_bytes": [result["cache_bytes"] for result in results],
            "share": [trial.params.get(SHARE, np.nan) for trial in trials],
        }
    )
    order = points.sort_values(["cache_bytes", "kl"], kind="stable")["kl"]
    best = order.cummin()
    points["on_front"] = (order <= best) & ~(best.duplicated() & (order == best))
    return Front(points, [load_policy_text(result["policy"], space.shape) for result in results])


def limits_at(share: float, largest: Limit, plain: int) -> Limit:
    """The limit of a share, on the terms of another one."""
    return Limit(int(share * plain + 1e-6), largest.batch, largest.streams, largest.dtype, largest.of, share)
