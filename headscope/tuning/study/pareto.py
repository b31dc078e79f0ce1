"""The front: the least loss for every number of bytes, by one two-objective study over the limit itself.

A point of the space is a share of the plain cache and a point of `TableSpace` at that share; NSGA-II keeps what no other
policy beats in both loss and bytes. The solver's answers at every asked share, and whatever else was found there, come
first, so the front is never above them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from headscope.errors import BudgetError, NumberError
from headscope.policy import CacheSpec, Policy
from headscope.progress import Progress, of_task
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.measurement import PolicyEvaluator
from headscope.tuning.propose.samplers import INCUMBENT, ReseededSampler
from headscope.tuning.propose.spaces import Number, TableSpace, neutral
from headscope.tuning.study.quiet import quiet_optuna
from headscope.tuning.study.results import Checked, Result, claim, dump_policy, is_proposal
from headscope.tuning.study.storage import StudyStore, for_one
from headscope.tuning.study.workers import RESULT, Watch, carried_out

SHARE = "share"
# Policy -> its loss and bytes, and itself, as a study keeps them.
Measure = Callable[[Policy], dict[str, Any]]


@dataclass(frozen=True)
class Front:
    """What `search_the_front` measured.

    Attributes:
        points: a row a measured policy: label, kl (nats a token), cache_bytes (of an image, as the limit counts them), share
            (the limit that it was made for, of the plain cache; nan where another search found it), on_front.
        policies: of each row.
    """

    points: pd.DataFrame
    policies: list[Policy]

    def under(self, nbytes: int) -> int | None:
        """The row of the least loss within `nbytes` an image; None where nothing is that small."""
        fits = self.points[self.points["cache_bytes"] <= nbytes]
        return None if fits.empty else int(fits["kl"].idxmin())


def search_the_front(
    replay: PolicyEvaluator,
    space_at: Callable[[float], TableSpace],
    shares: Mapping[str, float],
    incumbents: Mapping[str, Policy],
    config: SearchConfig,
    store: StudyStore,
    progress: Progress | None = None,
) -> Front:
    """Measure the incumbents and the solver's answer at every share, then let NSGA-II propose.

    Args:
        replay: the calibration images.
        space_at: share of the plain cache -> the space under that limit.
        shares: asked ones, by name.
        incumbents: policies by name that are measured first.
        config: trials and seed.
        store: where the study is kept; the same call continues.
        progress: told of trials.

    Raises:
        BudgetError: nothing fits the largest share.
        DataError: the storage holds a study of something else, or can't be read or written.
        NumberError: the model's logits are no numbers.
    """
    low, high = min(shares.values()), max(shares.values())
    with quiet_optuna():
        made = optuna.create_study(
            study_name=f"{store.name}front",
            storage=store.storage,
            directions=["minimize", "minimize"],
            load_if_exists=True,
            sampler=ReseededSampler("nsga-ii", config.seed),
        )
        claim(made, {"shares": sorted(shares.values()), **store.identity}, store.where, objectives=2)
        checked, watch = Checked(made, Result, store.where), Watch(made, alone=for_one(store.storage))
        checked.trials()
        watch.reap()
    share, largest = Number(SHARE, low, high, high), space_at(high)
    measure = partial(_measured, replay, largest.limit.spec.replace(batch=1))
    for name, policy in incumbents.items():
        _incumbent(checked, measure, name, policy, share, None, None)
    for name, asked in shares.items():
        try:
            space = space_at(asked)
            policy = space.build(neutral(space))
        except BudgetError:
            continue
        _incumbent(checked, measure, f"solver at {name}", policy, share, space, asked)
    tell = of_task(progress, "trials of the front", config.trials)
    while (done := sum(is_proposal(trial) for trial in checked.trials())) < config.trials:
        with quiet_optuna():
            watch.reap()
            _propose(made, measure, share, space_at)
        tell(done + 1, config.trials)
    return _front(checked, largest)


def _incumbent(
    checked: Checked,
    measure: Measure,
    label: str,
    policy: Policy,
    share: Number,
    space: TableSpace | None,
    asked: float | None,
) -> None:
    if any(trial.user_attrs[RESULT]["label"] == label for trial in checked.trials(TrialState.COMPLETE)):
        return
    result = {"label": label, **measure(policy)}
    values = {} if space is None or asked is None else {share.name: asked, **neutral(space)}
    numbers = () if space is None else (share, *space.numbers)
    with quiet_optuna():
        checked.study.add_trial(
            optuna.trial.create_trial(
                values=[result["kl"], result["cache_bytes"]],
                params={n.name: int(values[n.name]) if n.whole else values[n.name] for n in numbers},
                distributions={number.name: number.distribution() for number in numbers},
                user_attrs={INCUMBENT: True, RESULT: result},
            )
        )


def _propose(study: optuna.Study, measure: Measure, share: Number, space_at: Callable[[float], TableSpace]) -> None:
    trial = study.ask()

    def measured() -> tuple[dict[str, Any], list[float]]:
        space = space_at(share.suggest(trial))
        policy = space.build({number.name: number.suggest(trial) for number in space.numbers})
        found = {"label": "front trial", **measure(policy)}
        return found, [found["kl"], found["cache_bytes"]]

    carried_out(study, trial, measured)


def _measured(replay: PolicyEvaluator, spec: CacheSpec, policy: Policy) -> dict[str, Any]:
    found = replay.measure(policy)
    if not np.isfinite(found.kl):
        raise NumberError(
            f"The replay lost {found.kl} nats a token: the model's logits are not finite; "
            "load the model in another dtype, or another checkpoint."
        )
    return {"kl": found.kl, "cache_bytes": spec.bytes_of(policy), "policy": dump_policy(policy)}


def _front(checked: Checked, space: TableSpace) -> Front:
    trials = checked.trials(TrialState.COMPLETE)
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
    return Front(points, [checked.policy(trial, space.limit.spec.shape) for trial in trials])
