"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them."""

from headscope.tuning.compare import step_times
from headscope.tuning.measure.ablation import Needs, equal_options, needs
from headscope.tuning.measure.measurement import Remembered, ReplayResult
from headscope.tuning.measure.options import ANCHOR, Losses, losses_from
from headscope.tuning.measure.replay import Replay
from headscope.tuning.measure.sensitivity import measure_sensitivity
from headscope.tuning.measure.table import sensitivity_table
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.presets import Sweep, sweep_presets
from headscope.tuning.propose.samplers import SAMPLERS
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.search import SearchResult, search
from headscope.tuning.tune import Tuned, study_replay, tune

__all__ = [
    "ANCHOR",
    "SAMPLERS",
    "Losses",
    "Needs",
    "Remembered",
    "Replay",
    "ReplayResult",
    "SearchResult",
    "Sweep",
    "Tuned",
    "equal_options",
    "fitting_strides",
    "losses_from",
    "measure_sensitivity",
    "needs",
    "search",
    "sensitivity_table",
    "solve",
    "step_times",
    "study_replay",
    "sweep_presets",
    "tune",
]
