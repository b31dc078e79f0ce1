"""Tracing: what every head looks at, as statistics in a data set."""

from headscope.tracing.catalogue import STATISTICS, register_statistic
from headscope.tracing.dataset import TraceDataset
from headscope.tracing.hooks import watch, watch_live, watching
from headscope.tracing.live import Live
from headscope.tracing.merge import merge_traces
from headscope.tracing.module import ModuleTrace, trace_module
from headscope.tracing.selection import Selection
from headscope.tracing.trace import trace

__all__ = [
    "STATISTICS",
    "Live",
    "ModuleTrace",
    "Selection",
    "TraceDataset",
    "merge_traces",
    "register_statistic",
    "trace",
    "trace_module",
    "watch",
    "watch_live",
    "watching",
]
