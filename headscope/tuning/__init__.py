"""The search for a policy under a byte limit: what single heads need, a solver, presets, and Optuna around them.

Names are loaded when they are first used: the command line reads the defaults of `config` without Optuna and torch.
"""

# ruff: noqa: F401 - what checkers see of the names below
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.lazy import loaded

if TYPE_CHECKING:
    from headscope.tuning.compare import METHOD_COLUMNS, MethodTable, compare_methods, step_times
    from headscope.tuning.config import SAMPLERS, LimitConfig, PromptConfig, RunConfig, SearchConfig, config_from
    from headscope.tuning.config_file import read_config
    from headscope.tuning.measure.ablation import HeadAblation, ablate_heads, equal_options
    from headscope.tuning.measure.around import ParallelPass, table_around
    from headscope.tuning.measure.coverage import Coverage, Groups
    from headscope.tuning.measure.fisher import fisher_table, head_products, sampled_gradients
    from headscope.tuning.measure.free_running import measure_free_running
    from headscope.tuning.measure.full_cache import ROOM
    from headscope.tuning.measure.head_outputs import HeadOutputs
    from headscope.tuning.measure.joint import Products, measure_products
    from headscope.tuning.measure.measurement import MemoizedReplay, ReplayResult
    from headscope.tuning.measure.options import ANCHOR, Losses, Option, default_options, losses_from, table_stride
    from headscope.tuning.measure.replay import Replay
    from headscope.tuning.measure.room import batch_bytes, replayed_bytes
    from headscope.tuning.measure.sensitivity import load_table, measure_sensitivity, table_identity
    from headscope.tuning.measure.single_head import SingleHeadLoss
    from headscope.tuning.measure.table import Table, every_head, sensitivity_table
    from headscope.tuning.measure.usual import UsualAttention, approximated
    from headscope.tuning.measure.usual_measured import measure_usual, usual_attention
    from headscope.tuning.propose.class_space import ClassSpace
    from headscope.tuning.propose.knapsack import allocate, option_bytes, solve
    from headscope.tuning.propose.kvtuner import kvtuner
    from headscope.tuning.propose.presets import Sweep, sweep_presets
    from headscope.tuning.propose.spaces import TableSpace, neutral
    from headscope.tuning.propose.strides import fitting_strides
    from headscope.tuning.search import Search, SearchFiles, study_replay
    from headscope.tuning.smallest import Smallest, Step, find_smallest
    from headscope.tuning.study.outcome import SearchResult
    from headscope.tuning.study.pareto import Front, search_the_front
    from headscope.tuning.study.phases import PhasedStudy
    from headscope.tuning.study.storage import StudyStore
    from headscope.tuning.transfer.carry import Source, carry_over
    from headscope.tuning.transfer.learn import predicted, rule_of
    from headscope.tuning.transfer.sizes import carried
    from headscope.tuning.transfer.target import BY_DEPTH, BY_MAP, BY_TRACE, Seen, Target

# Where the names live.
_MODULES = {
    "compare": "METHOD_COLUMNS MethodTable compare_methods step_times",
    "config": "LimitConfig PromptConfig RunConfig SAMPLERS SearchConfig config_from",
    "config_file": "read_config",
    "measure.ablation": "HeadAblation ablate_heads equal_options",
    "measure.around": "ParallelPass table_around",
    "measure.coverage": "Coverage Groups",
    "measure.full_cache": "ROOM",
    "measure.fisher": "fisher_table head_products sampled_gradients",
    "measure.free_running": "measure_free_running",
    "measure.head_outputs": "HeadOutputs",
    "measure.joint": "Products measure_products",
    "measure.measurement": "MemoizedReplay ReplayResult",
    "measure.options": "ANCHOR Losses Option default_options losses_from table_stride",
    "measure.replay": "Replay",
    "measure.room": "batch_bytes replayed_bytes",
    "measure.sensitivity": "load_table measure_sensitivity table_identity",
    "measure.single_head": "SingleHeadLoss",
    "measure.table": "Table every_head sensitivity_table",
    "measure.usual": "UsualAttention approximated",
    "measure.usual_measured": "measure_usual usual_attention",
    "propose.knapsack": "allocate option_bytes solve",
    "propose.presets": "Sweep sweep_presets",
    "propose.class_space": "ClassSpace",
    "propose.kvtuner": "kvtuner",
    "propose.spaces": "TableSpace neutral",
    "propose.strides": "fitting_strides",
    "search": "Search SearchFiles study_replay",
    "smallest": "Smallest Step find_smallest",
    "study.outcome": "SearchResult",
    "study.pareto": "Front search_the_front",
    "study.phases": "PhasedStudy",
    "study.storage": "StudyStore",
    "transfer.carry": "Source carry_over",
    "transfer.learn": "predicted rule_of",
    "transfer.sizes": "carried",
    "transfer.target": "BY_DEPTH BY_MAP BY_TRACE Seen Target",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def __getattr__(name: str) -> Any:
    return loaded(__name__, _HOMES, name)
