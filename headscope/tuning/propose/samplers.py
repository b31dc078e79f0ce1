"""Samplers: what proposes the next point of a space, rebuilt from a seed for every proposal.

A sampler that is made once and continued from a storage repeats its first proposals; one whose state is only in memory
can't be continued at all. So each proposal gets a sampler of its own, seeded by the study's seed and the proposal's turn:
a study that was stopped goes on as one that was not, and processes that share a study draw different numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from headscope.errors import HeadscopeError
from headscope.tuning.config import SAMPLERS

# Proposals at random before a model of the losses is trusted; the incumbents count as seen.
STARTUP_TRIALS = 8
# Policies a generation of NSGA-II.
POPULATION = 16
# Marks of trials in their attributes: measured without a proposal, proposed again after a process died.
INCUMBENT, RETRIES = "incumbent", "retries"


def make_sampler(name: str, seed: int) -> BaseSampler:
    """A fresh sampler of Optuna.

    Args:
        name: tpe (multivariate, by groups), gp (Gaussian process), cma-es, nsga-ii or random.
        seed: of its random numbers.

    Raises:
        HeadscopeError: unknown name, or a package is missing that it needs.
    """
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, deterministic_objective=True)
    if name == "cma-es":
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise HeadscopeError("sampler cma-es: needs the package cmaes; pip install 'headscope[cma]'.") from None
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
    if name == "nsga-ii":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise HeadscopeError(f"sampler {name}: unknown; expected one of {', '.join(SAMPLERS)}.")


class ReseededSampler(BaseSampler):
    """Asks a fresh sampler, seeded by (seed, turn), for every trial.

    A trial's turn counts the proposals before it: neither incumbents nor trials that repeat an interrupted proposal count,
    and such a repetition has the turn of the trial that it repeats. In a study of one process a turn therefore has the same
    seed, and sees the same losses, whether the study was stopped on the way or not.

    Args:
        name: see `make_sampler`.
        seed: of the study.
    """

    def __init__(self, name: str, seed: int) -> None:
        make_sampler(name, seed)  # refuses an unknown name at once
        self.name, self.seed = name, seed
        self._turn = -1
        self._inner: BaseSampler = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self._for(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return self._for(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `BaseSampler`."""
        return self._for(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `BaseSampler`."""
        self._turn = -1
        self._for(study, trial).before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """See `BaseSampler`."""
        self._for(study, trial).after_trial(study, trial, state, values)

    def _for(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        turn = turn_of(study, trial)
        if turn != self._turn:
            self._turn, self._inner = turn, make_sampler(self.name, seed_of(self.seed, turn))
        return self._inner


def turn_of(study: optuna.Study, trial: FrozenTrial) -> int:
    """Proposals made before this one; a repeated proposal has the turn of the one it repeats."""
    number = first_number(trial)
    return sum(
        earlier.number < number and not earlier.user_attrs.get(INCUMBENT) and RETRIES not in earlier.user_attrs
        for earlier in study.get_trials(deepcopy=False)
    )


def first_number(trial: FrozenTrial) -> int:
    """The number of the trial that proposed these numbers first: its own, unless it repeats an interrupted one."""
    number = trial.user_attrs.get(RETRIES, trial.number)
    return number if isinstance(number, int) else trial.number


def seed_of(seed: int, turn: int) -> int:
    """32 bits from a study's seed and a turn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{turn}".encode()).digest()[:4], "little")
