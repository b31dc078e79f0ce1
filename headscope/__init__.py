"""headscope: learn what the attention heads of an image-generating transformer need to remember, and keep only that.

The public names are loaded when they are first used, so that `import headscope` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.lazy import loaded

if TYPE_CHECKING:
    from headscope.errors import HeadscopeError as HeadscopeError
    from headscope.evaluation import EvaluationConfig as EvaluationConfig, evaluate as evaluate
    from headscope.geometry import Geometry as Geometry
    from headscope.heads import HeadClassifier as HeadClassifier, Heads as Heads, classify as classify
    from headscope.models import load_model as load_model, observe as observe, register_model as register_model
    from headscope.pipeline import transfer as transfer
    from headscope.pipeline.run import run as run
    from headscope.policy import (
        PRESETS as PRESETS,
        CacheSpec as CacheSpec,
        Limit as Limit,
        ModelShape as ModelShape,
        Policy as Policy,
        export_policy as export_policy,
        import_policy as import_policy,
        load_policy as load_policy,
        make_preset as make_preset,
        register_preset as register_preset,
        register_score as register_score,
        save_policy as save_policy,
    )
    from headscope.progress import Progress as Progress
    from headscope.runtime import (
        CompressedCache as CompressedCache,
        Sampling as Sampling,
        compressed as compressed,
        generate as generate,
    )
    from headscope.samples import Samples as Samples
    from headscope.tracing import (
        Selection as Selection,
        TraceDataset as TraceDataset,
        merge_traces as merge_traces,
        register_statistic as register_statistic,
        trace as trace,
        trace_module as trace_module,
        watch_live as watch_live,
    )
    from headscope.tuning import (
        LimitConfig as LimitConfig,
        PromptConfig as PromptConfig,
        Replay as Replay,
        RunConfig as RunConfig,
        SearchConfig as SearchConfig,
        SearchResult as SearchResult,
        measure_sensitivity as measure_sensitivity,
        solve as solve,
    )
    from headscope.tuning.search import search as search

# Where the public names live.
_ROOMS = {
    "errors": "HeadscopeError",
    "evaluation": "EvaluationConfig evaluate",
    "geometry": "Geometry",
    "heads": "HeadClassifier Heads classify",
    "models": "load_model observe register_model",
    "pipeline": "run transfer",
    "policy": "CacheSpec Limit ModelShape PRESETS Policy export_policy import_policy load_policy make_preset "
    "register_preset register_score save_policy",
    "progress": "Progress",
    "runtime": "CompressedCache Sampling compressed generate",
    "samples": "Samples",
    "tracing": "Selection TraceDataset merge_traces register_statistic trace trace_module watch_live",
    "tuning": "LimitConfig PromptConfig Replay RunConfig SearchConfig SearchResult measure_sensitivity solve",
    "tuning.search": "search",
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def __getattr__(name: str) -> Any:
    value = globals()[name] = loaded(__name__, _HOMES, name)
    return value
