"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them.

Names are loaded when they are first used: the command line reads the defaults of `config` without Optuna and torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.lazy import loaded

if TYPE_CHECKING:
    from headscope.tuning.compare import MethodTable as MethodTable
    from headscope.tuning.compare import compare_methods as compare_methods
    from headscope.tuning.compare import step_times as step_times
    from headscope.tuning.config import SAMPLERS as SAMPLERS
    from headscope.tuning.config import LimitConfig as LimitConfig
    from headscope.tuning.config import PromptConfig as PromptConfig
    from headscope.tuning.config import RunConfig as RunConfig
    from headscope.tuning.config import SearchConfig as SearchConfig
    from headscope.tuning.config import config_from as config_from
    from headscope.tuning.config_file import read_config as read_config
    from headscope.tuning.measure.ablation import HeadAblation as HeadAblation
    from headscope.tuning.measure.ablation import ablate_heads as ablate_heads
    from headscope.tuning.measure.ablation import equal_options as equal_options
    from headscope.tuning.measure.coverage import Coverage as Coverage
    from headscope.tuning.measure.coverage import Groups as Groups
    from headscope.tuning.measure.measurement import MemoizedReplay as MemoizedReplay
    from headscope.tuning.measure.measurement import ReplayResult as ReplayResult
    from headscope.tuning.measure.options import ANCHOR as ANCHOR
    from headscope.tuning.measure.options import Losses as Losses
    from headscope.tuning.measure.options import Option as Option
    from headscope.tuning.measure.options import losses_from as losses_from
    from headscope.tuning.measure.replay import Replay as Replay
    from headscope.tuning.measure.sensitivity import measure_sensitivity as measure_sensitivity
    from headscope.tuning.measure.table import Table as Table
    from headscope.tuning.measure.table import sensitivity_table as sensitivity_table
    from headscope.tuning.propose.knapsack import solve as solve
    from headscope.tuning.propose.presets import Sweep as Sweep
    from headscope.tuning.propose.presets import sweep_presets as sweep_presets
    from headscope.tuning.propose.strides import fitting_strides as fitting_strides
    from headscope.tuning.search import Search as Search
    from headscope.tuning.search import SearchFiles as SearchFiles
    from headscope.tuning.search import study_replay as study_replay
    from headscope.tuning.smallest import Smallest as Smallest
    from headscope.tuning.smallest import Step as Step
    from headscope.tuning.study.outcome import SearchResult as SearchResult
    from headscope.tuning.study.phases import PhasedStudy as PhasedStudy
    from headscope.tuning.study.storage import StudyStore as StudyStore

_HOMES = {
    "ANCHOR": "measure.options",
    "SAMPLERS": "config",
    "Coverage": "measure.coverage",
    "Groups": "measure.coverage",
    "LimitConfig": "config",
    "Losses": "measure.options",
    "MethodTable": "compare",
    "HeadAblation": "measure.ablation",
    "Option": "measure.options",
    "PhasedStudy": "study.phases",
    "PromptConfig": "config",
    "MemoizedReplay": "measure.measurement",
    "Replay": "measure.replay",
    "ReplayResult": "measure.measurement",
    "RunConfig": "config",
    "Search": "search",
    "SearchConfig": "config",
    "SearchFiles": "search",
    "SearchResult": "study.outcome",
    "Smallest": "smallest",
    "Step": "smallest",
    "StudyStore": "study.storage",
    "Sweep": "propose.presets",
    "Table": "measure.table",
    "compare_methods": "compare",
    "config_from": "config",
    "equal_options": "measure.ablation",
    "fitting_strides": "propose.strides",
    "losses_from": "measure.options",
    "measure_sensitivity": "measure.sensitivity",
    "ablate_heads": "measure.ablation",
    "read_config": "config_file",
    "sensitivity_table": "measure.table",
    "solve": "propose.knapsack",
    "step_times": "compare",
    "study_replay": "search",
    "sweep_presets": "propose.presets",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def __getattr__(name: str) -> Any:
    return loaded(__name__, _HOMES, name)
