"""headscope: learn what the attention heads of an image-generating transformer need to remember, and keep only that.

The public names are loaded when they are first used, so that `import headscope` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.heads import classify
    from headscope.models import load_model
    from headscope.pipeline import run
    from headscope.policy import Policy, load_policy, save_policy
    from headscope.runtime import CompressedCache, compressed, generate
    from headscope.tracing import Selection, TraceDataset, merge_traces, register_statistic, trace, trace_module, watch_live
    from headscope.tuning import tune as search

_HOMES = {
    "classify": "heads",
    "load_model": "models",
    "Policy": "policy",
    "load_policy": "policy",
    "save_policy": "policy",
    "run": "pipeline",
    "CompressedCache": "runtime",
    "compressed": "runtime",
    "generate": "runtime",
    "Selection": "tracing",
    "TraceDataset": "tracing",
    "merge_traces": "tracing",
    "register_statistic": "tracing",
    "trace": "tracing",
    "trace_module": "tracing",
    "watch_live": "tracing",
    "search": "tuning",
}

__all__ = [
    "CompressedCache",
    "Policy",
    "Selection",
    "TraceDataset",
    "classify",
    "compressed",
    "generate",
    "load_model",
    "load_policy",
    "merge_traces",
    "register_statistic",
    "run",
    "save_policy",
    "search",
    "trace",
    "trace_module",
    "watch_live",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headscope' has no attribute '{name}'")
    module = import_module(f"headscope.{_HOMES[name]}")
    value = getattr(module, "tune" if name == "search" else name)
    globals()[name] = value
    return value
