"""The steps of a run, each from the files of the one before, each one call."""

from headscope.pipeline.steps.classify import heads_step
from headscope.pipeline.steps.compare import compare_step
from headscope.pipeline.steps.generate import generate_step
from headscope.pipeline.steps.search import search_step
from headscope.pipeline.steps.sensitivity import sensitivity_step
from headscope.pipeline.steps.trace import trace_step

__all__ = ["compare_step", "generate_step", "heads_step", "search_step", "sensitivity_step", "trace_step"]
