"""A policy measured on the unseen images of a run, and the result written into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.intervals import mean_interval
from headscope.pipeline.opened import Run
from headscope.pipeline.recorded import unseen_images
from headscope.policy import Policy, dtype_name, load_policy, policy_file, save_policy
from headscope.progress import of_task
from headscope.runtime import check_prefix
from headscope.samples import Samples
from headscope.storage import check_writable
from headscope.tuning import Replay, measure_free_running

RESULT = "measured"  # the name that it stands under


def measure_policy(run: Run, file: str | Path, out: str | Path | None = None) -> Policy:
    """Replay the unseen images of a run with a policy, generate images with it, and write what it loses into its file.

    The file gets the result `measured`: replay_kl and free_kl in nats a token with their 95 % intervals over images (kl_low,
    kl_high, free_low, free_high), top1, images, cache_bytes and kept_ratio as methods.csv counts them. Its other results stay.
    The provenance gets `measured_on`: model, weights, prompts, dtype; and a policy that was transferred is measured now.

    Args:
        run: whose unseen images; they are generated where they are not there yet.
        file: the policy file, or the name of a shipped policy.
        out: the file to write, by default `file`.

    Returns:
        The policy as it was written.

    Raises:
        PolicyMismatch: it is for another model than the run's.
        CacheError: the run's prompts are too long for its limit.
        DataError: it can't be written, or it comes with headscope and no other file is named.
    """
    target = measured_target(file, out)
    policy, model = load_policy(file), run.model
    fitted = load_policy(file, model.shape)
    prompts = run.prompts()["unseen"]
    if not prompts:
        raise DataError(f"{run.folder.path}: has no unseen prompts; begin another run with some.")
    check_prefix(fitted, int(model.tokenize(prompts).ids.shape[1]))
    check_writable(target)
    samples = unseen_images(run)
    result = _result(run, fitted, samples)
    on = {"model": model.shape.name, "weights": model.shape.weights, "prompts": len(samples), "dtype": dtype_name(model.dtype)}
    provenance: dict[str, Any] = {**policy.provenance, "measured_on": on}
    if isinstance(moved := provenance.get("transferred"), dict):
        provenance["transferred"] = {**moved, "measured": True}
    measured = policy.replace(results={**policy.results, RESULT: result}, provenance=provenance)
    save_policy(measured, target)
    return measured


def _result(run: Run, policy: Policy, samples: Samples) -> dict[str, float]:
    tell = of_task(run.progress, "measuring on recorded images, then on its own", 2)
    replay = Replay(run.model, samples, by_stream=False)
    recorded = replay.measure(policy)
    tell(1, 2)
    own = measure_free_running(run.model, samples, policy, batch_size=replay.batch_size)
    tell(2, 2)
    spec = run.spec().replace(prefix=policy.prefix, batch=1)
    ends = [mean_interval(found.kl_by_image.numpy(), seed=run.config.search.seed) for found in (recorded, own)]
    return {
        "replay_kl": recorded.kl,
        **dict(zip(("kl_low", "kl_high"), ends[0], strict=True)),
        "free_kl": own.kl,
        **dict(zip(("free_low", "free_high"), ends[1], strict=True)),
        "top1": recorded.top1,
        "images": len(samples),
        "cache_bytes": spec.replace(count_prefix=True).bytes_of(policy),
        "kept_ratio": spec.share_of(policy),
    }


def measured_target(file: str | Path, out: str | Path | None) -> Path:
    """Where a measured policy is written.

    Args:
        file: that it is read from.
        out: that was asked for.

    Raises:
        DataError: nothing was asked for, and the policy was named as one that comes with headscope.
    """
    if out is not None:
        return Path(out)
    if policy_file(file) != Path(file):
        raise DataError(f"{file}: comes with headscope and stays as it is; name a file to write with `out`.")
    return Path(file)
