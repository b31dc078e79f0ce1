"""Classify the heads of the trace."""

from __future__ import annotations

from headscope.heads import HeadClassifier, Heads, classify
from headscope.models.protocol import ImageModel
from headscope.pipeline.settings import Settings
from headscope.pipeline.steps.timed import timed
from headscope.run_folder import RunFolder
from headscope.tracing import TraceDataset


def heads_step(folder: RunFolder, model: ImageModel, settings: Settings, classifier: HeadClassifier | None = None) -> Heads:
    """Classify the heads of the trace: heads.safetensors."""
    with timed(folder, "heads"):
        judge = classifier or HeadClassifier(settings.seed)
        heads = classify(
            TraceDataset(folder.trace),
            model.shape,
            seed=judge.random_state,
            method=judge.method,
            clusters=judge.n_clusters,
            threshold=judge.threshold,
        )
        heads.save(folder.heads)
        return heads
