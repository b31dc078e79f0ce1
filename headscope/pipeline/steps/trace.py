"""Generate the calibration images and trace them."""

from __future__ import annotations

import hashlib
from functools import partial

from headscope.errors import ModelError
from headscope.models import ImageModel, is_own
from headscope.pipeline.model_check import check_model
from headscope.pipeline.opened import Run
from headscope.pipeline.recorded import calibration_images
from headscope.pipeline.steps.timed import timed
from headscope.policy import Policy
from headscope.runtime import Sampling, generate
from headscope.samples import Samples
from headscope.tracing import Live, Selection, TraceDataset, trace


def trace_step(
    run: Run, *, selection: Selection | None = None, live: bool = False, policy: Policy | None = None
) -> TraceDataset:
    """Generate the calibration images and trace them: calibration.parquet, trace/.

    Args:
        run: whose calibration prompts.
        selection: what to trace, everything of the default set unless given.
        live: trace while generating.
        policy: generate and trace through its compressed cache, which only live tracing can see.

    Raises:
        ModelError: a user's own model is not what headscope takes it for, see `check_model`; it is tried at its first trace.
    """
    folder, model = run.folder, run.model
    if is_own(run.config.model) and not folder.trace.exists():
        _check(run)
    with timed(folder, "trace"):
        return trace(
            model,
            calibration_images(run, policy),
            folder.trace,
            selection=selection,
            progress=run.progress,
            resume=folder.trace.exists(),
            live=Live(partial(_generate_again, model, policy), _cache_name(policy)) if live or policy is not None else None,
        )


def _check(run: Run) -> None:
    """Refuse a model of which anything is wrong that headscope relies on."""
    for finding in check_model(run.model, run.prompts()["calibration"], run.config.model):
        if finding.wrong is not None:
            raise ModelError(f"{run.config.model}: {finding.what}: {finding.wrong}.")


def _generate_again(model: ImageModel, policy: Policy | None, samples: Samples) -> None:
    """Generate recorded images once more, for a live trace; the same seeds give the same tokens."""
    generate(
        model,
        samples.prompts,
        samples.seeds.tolist(),
        policy=policy,
        sampling=Sampling.of_samples(samples),
        batch_size=len(samples),
    )


def _cache_name(policy: Policy | None) -> str:
    """What stands in a trace for the cache it looked through: traces of two caches, or of two policies, do not mix."""
    if policy is None:
        return "full, live"
    tensors = [policy.window, policy.heavy, policy.anchor, policy.decay, policy.per_visit]
    tensors += [policy.bits] if policy.quantized else []
    tensors += [policy.prompt] if bool((policy.prompt != 1).any()) else []
    told = [policy.stride, *(t.tolist() for t in tensors)] + ([policy.fingerprint()] if policy.other_scores else [])
    numbers = hashlib.sha256(repr(told).encode()).hexdigest()
    return f"{policy.provenance.get('method', 'policy')} {numbers[:12]}"
