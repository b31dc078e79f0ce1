"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them."""

from headscope.tuning.replay import Replay, ReplayResult
from headscope.tuning.study import SearchResult, search
from headscope.tuning.sweep import sweep_presets
from headscope.tuning.tune import Tuned, tune

__all__ = ["Replay", "ReplayResult", "SearchResult", "Tuned", "search", "sweep_presets", "tune"]
