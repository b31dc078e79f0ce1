"""Generate the calibration images and trace them."""

from __future__ import annotations

import hashlib
from functools import partial

from headscope.models.protocol import ImageModel
from headscope.pipeline.recorded import calibration_images
from headscope.pipeline.settings import Progress, Settings, as_counts
from headscope.pipeline.steps.timed import timed
from headscope.policy.policy import Policy
from headscope.run_folder import RunFolder
from headscope.runtime import Sampling, generate
from headscope.samples import Samples
from headscope.tracing import Selection, TraceDataset, trace


def trace_step(
    model: ImageModel,
    folder: RunFolder,
    prompts: list[str],
    settings: Settings,
    progress: Progress | None = None,
    *,
    selection: Selection | None = None,
    live: bool = False,
    policy: Policy | None = None,
) -> TraceDataset:
    """Generate the calibration images and trace them: calibration.parquet, trace/.

    Args:
        selection: what to trace, everything of the default set unless given.
        live: trace while generating. policy: generate and trace through its compressed cache, which only live tracing can see.
    """
    with timed(folder, "trace"):
        samples = calibration_images(model, folder, prompts, settings, progress, policy)
        return trace(
            model,
            samples,
            folder.trace,
            selection=selection,
            progress=as_counts(progress, "tracing"),
            resume=folder.trace.exists(),
            beside=True,  # what --overwrite has left there
            play=partial(_generate_again, model, policy) if live or policy is not None else None,
            cache=_cache_name(policy, live),
        )


def _generate_again(model: ImageModel, policy: Policy | None, samples: Samples) -> None:
    """Generate recorded images once more, for a live trace; the same seeds give the same tokens."""
    generate(
        model,
        samples.prompts,
        samples.seeds.tolist(),
        policy=policy,
        sampling=Sampling(samples.guidance, samples.temperature, samples.top_k),
        batch_size=len(samples),
    )


def _cache_name(policy: Policy | None, live: bool) -> str:
    """What stands in a trace for the cache it looked through: traces of two caches, or of two policies, do not mix."""
    if policy is None:
        return "full, live" if live else "full"
    tensors = (policy.window, policy.heavy, policy.anchor, policy.decay, policy.per_visit)
    numbers = hashlib.sha256(repr([policy.stride, *(t.tolist() for t in tensors)]).encode()).hexdigest()
    return f"{policy.provenance.get('method', 'policy')} {numbers[:12]}"
