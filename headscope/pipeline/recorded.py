"""The images that a run looks at: those to trace and search on, and those that no search sees."""

from __future__ import annotations

from pathlib import Path

from headscope.errors import DataError
from headscope.models.protocol import ImageModel
from headscope.pipeline.settings import Progress, Settings, as_counts
from headscope.policy.policy import Policy
from headscope.run_folder import RunFolder
from headscope.runtime import Sampling, generate
from headscope.samples import Samples


def calibration_images(
    model: ImageModel,
    folder: RunFolder,
    prompts: list[str],
    settings: Settings,
    progress: Progress | None = None,
    policy: Policy | None = None,
) -> Samples:
    """The images to trace and search on: calibration.parquet."""
    return _drawn(model, folder.samples, prompts, settings, settings.seed, "calibration", progress, policy)


def unseen_images(
    model: ImageModel, folder: RunFolder, prompts: list[str], settings: Settings, progress: Progress | None = None
) -> Samples:
    """Images of prompts that no search sees, generated with the full cache: unseen.parquet."""
    seed = int(folder.read().get("seed", settings.seed)) + 10_000  # other random numbers than the calibration images
    return _drawn(model, folder.unseen, prompts, settings, seed, "unseen", progress)


def _drawn(
    model: ImageModel,
    path: Path,
    prompts: list[str],
    settings: Settings,
    seed: int,
    what: str,
    progress: Progress | None,
    policy: Policy | None = None,
) -> Samples:
    """Images generated with the full cache (or a policy's), or those that stand in `path` from before a stop."""
    if path.is_file():
        samples = Samples.load(path)
        asked = model.guidance if settings.guidance is None else settings.guidance
        if samples.prompts != prompts or samples.weights != model.shape.weights or samples.guidance != asked:
            raise DataError(f"{path}: holds images of other prompts, weights or guidance; choose another folder with --out.")
        return samples
    shown = as_counts(progress, f"generating the {what} images")
    samples = generate(
        model,
        prompts,
        seed,
        sampling=Sampling(guidance=settings.guidance),
        batch_size=settings.batch_size,
        progress=shown,
        policy=policy,
    )
    samples.save(path)
    return samples
