"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them."""

from headscope.tuning.needs import Needs, equal_options, needs
from headscope.tuning.replay import Replay, ReplayResult
from headscope.tuning.sensitivity import measure_sensitivity
from headscope.tuning.study import SearchResult, search
from headscope.tuning.sweep import sweep_presets
from headscope.tuning.tune import Tuned, tune

__all__ = [
    "Needs",
    "Replay",
    "ReplayResult",
    "SearchResult",
    "Tuned",
    "equal_options",
    "measure_sensitivity",
    "needs",
    "search",
    "sweep_presets",
    "tune",
]
