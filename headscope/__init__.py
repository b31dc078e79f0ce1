"""headscope: learn what the attention heads of an image-generating transformer need to remember, and keep only that.

The public names are loaded when they are first used, so that `import headscope` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.lazy import loaded

if TYPE_CHECKING:
    from headscope.errors import HeadscopeError
    from headscope.evaluation import EvaluationConfig, evaluate
    from headscope.geometry import Geometry
    from headscope.heads import HeadClassifier, Heads, classify
    from headscope.models import load_model, observe, register_model
    from headscope.pipeline import run
    from headscope.policy import (
        PRESETS,
        CacheSpec,
        Limit,
        ModelShape,
        Policy,
        load_policy,
        make_preset,
        register_preset,
        save_policy,
    )
    from headscope.progress import Progress
    from headscope.runtime import CompressedCache, Sampling, compressed, generate
    from headscope.samples import Samples
    from headscope.tracing import Selection, TraceDataset, merge_traces, register_statistic, trace, trace_module, watch_live
    from headscope.tuning import (
        LimitConfig,
        PromptConfig,
        Replay,
        RunConfig,
        SearchConfig,
        SearchResult,
        measure_sensitivity,
        solve,
    )
    from headscope.tuning.search import search

# Where each public name lives.
_HOMES = {
    "HeadscopeError": "errors",
    "EvaluationConfig": "evaluation",
    "evaluate": "evaluation",
    "Geometry": "geometry",
    "HeadClassifier": "heads",
    "Heads": "heads",
    "classify": "heads",
    "load_model": "models",
    "observe": "models",
    "register_model": "models",
    "run": "pipeline",
    "PRESETS": "policy",
    "CacheSpec": "policy",
    "Limit": "policy",
    "ModelShape": "policy",
    "Policy": "policy",
    "load_policy": "policy",
    "make_preset": "policy",
    "register_preset": "policy",
    "save_policy": "policy",
    "CompressedCache": "runtime",
    "Sampling": "runtime",
    "compressed": "runtime",
    "generate": "runtime",
    "Samples": "samples",
    "Selection": "tracing",
    "TraceDataset": "tracing",
    "merge_traces": "tracing",
    "register_statistic": "tracing",
    "trace": "tracing",
    "trace_module": "tracing",
    "watch_live": "tracing",
    "Replay": "tuning",
    "SearchResult": "tuning",
    "measure_sensitivity": "tuning",
    "solve": "tuning",
    "LimitConfig": "tuning",
    "PromptConfig": "tuning",
    "RunConfig": "tuning",
    "SearchConfig": "tuning",
    "search": "tuning.search",
    "Progress": "progress",
}

__all__ = [
    "PRESETS",
    "CacheSpec",
    "CompressedCache",
    "EvaluationConfig",
    "Geometry",
    "HeadClassifier",
    "Heads",
    "HeadscopeError",
    "Limit",
    "LimitConfig",
    "ModelShape",
    "Policy",
    "Progress",
    "PromptConfig",
    "Replay",
    "RunConfig",
    "Samples",
    "Sampling",
    "SearchConfig",
    "SearchResult",
    "Selection",
    "TraceDataset",
    "classify",
    "compressed",
    "evaluate",
    "generate",
    "load_model",
    "load_policy",
    "make_preset",
    "measure_sensitivity",
    "merge_traces",
    "observe",
    "register_model",
    "register_preset",
    "register_statistic",
    "run",
    "save_policy",
    "search",
    "solve",
    "trace",
    "trace_module",
    "watch_live",
]


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def __getattr__(name: str) -> Any:
    value = globals()[name] = loaded(__name__, _HOMES, name)
    return value
