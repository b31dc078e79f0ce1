"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them.

Names are loaded when they are first used: the command line reads the defaults of `config` without Optuna and torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.lazy import loaded

if TYPE_CHECKING:
    from headscope.tuning.compare import METHOD_COLUMNS as METHOD_COLUMNS
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
    from headscope.tuning.measure.options import default_options as default_options
    from headscope.tuning.measure.options import losses_from as losses_from
    from headscope.tuning.measure.replay import BATCH_BYTES as BATCH_BYTES
    from headscope.tuning.measure.replay import Replay as Replay
    from headscope.tuning.measure.sensitivity import measure_sensitivity as measure_sensitivity
    from headscope.tuning.measure.sensitivity import table_identity as table_identity
    from headscope.tuning.measure.table import Table as Table
    from headscope.tuning.measure.table import every_head as every_head
    from headscope.tuning.measure.table import sensitivity_table as sensitivity_table
    from headscope.tuning.propose.knapsack import solve as solve
    from headscope.tuning.propose.presets import Sweep as Sweep
    from headscope.tuning.propose.presets import sweep_presets as sweep_presets
    from headscope.tuning.propose.spaces import ClassSpace as ClassSpace
    from headscope.tuning.propose.spaces import TableSpace as TableSpace
    from headscope.tuning.propose.spaces import neutral as neutral
    from headscope.tuning.propose.strides import fitting_strides as fitting_strides
    from headscope.tuning.search import Search as Search
    from headscope.tuning.search import SearchFiles as SearchFiles
    from headscope.tuning.search import study_replay as study_replay
    from headscope.tuning.smallest import Smallest as Smallest
    from headscope.tuning.smallest import Step as Step
    from headscope.tuning.smallest import find_smallest as find_smallest
    from headscope.tuning.study.outcome import SearchResult as SearchResult
    from headscope.tuning.study.pareto import Front as Front
    from headscope.tuning.study.pareto import search_the_front as search_the_front
    from headscope.tuning.study.phases import PhasedStudy as PhasedStudy
    from headscope.tuning.study.storage import StudyStore as StudyStore

_HOMES = {
    "ANCHOR": "measure.options",
    "BATCH_BYTES": "measure.replay",
    "ClassSpace": "propose.spaces",
    "Coverage": "measure.coverage",
    "Front": "study.pareto",
    "Groups": "measure.coverage",
    "HeadAblation": "measure.ablation",
    "LimitConfig": "config",
    "Losses": "measure.options",
    "METHOD_COLUMNS": "compare",
    "MemoizedReplay": "measure.measurement",
    "MethodTable": "compare",
    "Option": "measure.options",
    "PhasedStudy": "study.phases",
    "PromptConfig": "config",
    "Replay": "measure.replay",
    "ReplayResult": "measure.measurement",
    "RunConfig": "config",
    "SAMPLERS": "config",
    "Search": "search",
    "SearchConfig": "config",
    "SearchFiles": "search",
    "SearchResult": "study.outcome",
    "Smallest": "smallest",
    "Step": "smallest",
    "StudyStore": "study.storage",
    "Sweep": "propose.presets",
    "Table": "measure.table",
    "TableSpace": "propose.spaces",
    "ablate_heads": "measure.ablation",
    "compare_methods": "compare",
    "config_from": "config",
    "default_options": "measure.options",
    "equal_options": "measure.ablation",
    "find_smallest": "smallest",
    "fitting_strides": "propose.strides",
    "every_head": "measure.table",
    "losses_from": "measure.options",
    "measure_sensitivity": "measure.sensitivity",
    "neutral": "propose.spaces",
    "read_config": "config_file",
    "search_the_front": "study.pareto",
    "sensitivity_table": "measure.table",
    "solve": "propose.knapsack",
    "step_times": "compare",
    "study_replay": "search",
    "sweep_presets": "propose.presets",
    "table_identity": "measure.sensitivity",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def __getattr__(name: str) -> Any:
    return loaded(__name__, _HOMES, name)
