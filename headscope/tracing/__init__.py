"""Tracing: what every head looks at, as statistics in a data set."""

from headscope.tracing.dataset import TraceDataset
from headscope.tracing.trace import trace

__all__ = ["TraceDataset", "trace"]
