"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them."""

from headscope.tuning.measure.ablation import Needs, equal_options, needs
from headscope.tuning.measure.replay import Remembered, Replay, ReplayResult
from headscope.tuning.measure.sensitivity import measure_sensitivity
from headscope.tuning.propose.presets import Sweep, sweep_presets
from headscope.tuning.search import SearchResult, search
from headscope.tuning.tune import Tuned, study_replay, tune

__all__ = [
    "Needs",
    "Remembered",
    "Replay",
    "ReplayResult",
    "SearchResult",
    "Sweep",
    "Tuned",
    "equal_options",
    "measure_sensitivity",
    "needs",
    "search",
    "study_replay",
    "sweep_presets",
    "tune",
]
