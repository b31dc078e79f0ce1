"""Classify the heads of the trace."""

from __future__ import annotations

from headscope.heads import HeadClassifier, Heads, classify
from headscope.pipeline.opened import Run
from headscope.pipeline.steps.timed import timed
from headscope.tracing import TraceDataset


def heads_step(run: Run, classifier: HeadClassifier | None = None) -> Heads:
    """Classify the heads of the trace: heads.safetensors.

    Args:
        run: whose trace.
        classifier: how; by default with the run's seed.
    """
    with timed(run.folder, "heads"):
        judge = classifier or HeadClassifier(run.config.seed)
        heads = classify(TraceDataset(run.folder.trace), run.model.shape, judge)
        heads.save(run.folder.heads)
        return heads
