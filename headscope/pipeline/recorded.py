"""The images that a run looks at: those to trace and search on, and those that no search sees."""

from __future__ import annotations

from pathlib import Path

from headscope.errors import DataError
from headscope.pipeline.opened import Run
from headscope.policy import Policy
from headscope.progress import renamed
from headscope.runtime import Sampling, decoder_name, generate
from headscope.samples import Samples


def calibration_images(run: Run, policy: Policy | None = None) -> Samples:
    """The images to trace and search on, of the full cache or of a policy's: calibration.parquet."""
    return _recorded(run, run.folder.samples, "calibration", run.config.seed, policy)


def unseen_images(run: Run) -> Samples:
    """Images of prompts that no search sees, generated with the full cache: unseen.parquet."""
    seed = int(run.folder.read().get("seed", run.config.seed)) + 10_000  # other random numbers than the calibration images
    return _recorded(run, run.folder.unseen, "unseen", seed)


def _recorded(run: Run, path: Path, what: str, seed: int, policy: Policy | None = None) -> Samples:
    """The images that stand in `path` from before a stop, or that are generated now."""
    model, config, prompts = run.model, run.config, run.prompts()[what]
    if path.is_file():
        samples = Samples.load(path)
        asked = Sampling(guidance=config.guidance).of(model)
        same = (samples.guidance, samples.cfg_interval) == (asked.guidance, asked.cfg_interval)
        if samples.prompts != prompts or samples.weights != model.shape.weights or not same:
            raise DataError(f"{path}: holds images of other prompts, weights or guidance; choose another folder for `out`.")
        return samples
    samples = generate(
        model,
        prompts,
        seed,
        sampling=Sampling(guidance=config.guidance),
        batch_size=config.batch_size,
        progress=renamed(run.progress, f"generating the {what} images"),
        policy=policy,
    )
    samples.save(path)
    run.folder.note(decoders={what: decoder_name(model, policy)})
    return samples
