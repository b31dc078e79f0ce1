"""All steps for one model, into one run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headscope.errors import DataError
from headscope.models import load_model
from headscope.models.protocol import ImageModel
from headscope.models.registry import lasting_name, source_of
from headscope.models.tokens import warn_of_unknown_words
from headscope.pipeline.estimate import Estimate, estimate
from headscope.pipeline.limits import limit_facts, limit_of
from headscope.pipeline.prompts import default_prompts, read_prompts, split
from headscope.pipeline.settings import Progress, Settings
from headscope.pipeline.steps import compare_step, generate_step, heads_step, search_step, trace_step
from headscope.provenance import machine
from headscope.reporting import write_report
from headscope.run_folder import RunFolder
from headscope.storage import read_json, write_json

STEPS = ("trace", "heads", "search", "compare", "generate")


def run(
    source: str,
    out: str | Path,
    *,
    prompts: str | Path | list[str] | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    dtype: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[ImageModel, Estimate], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trace, classify, search, compare, generate and report.

    Args:
        source: what `load_model` takes.
        out: the run folder. prompts: a file (see `read_prompts`), a list, or None for the model's own.
        announce: told the model and what the run will take, before it begins.

    Returns:
        Path of report.html.

    Raises:
        HeadscopeError: one sentence for the user; what was written before stays, `resume=True` continues there.
    """
    settings = settings or Settings()
    chosen = default_prompts(source) if prompts is None else prompts
    texts = chosen if isinstance(chosen, list) else read_prompts(chosen)
    parts = split(texts, settings.calibration, settings.unseen)
    model = load_model(source, device=device, dtype=dtype)
    folder = RunFolder(Path(out))
    begin(model, source, folder, parts, settings, resume=resume, overwrite=overwrite)
    prefix = int(folder.read()["prefix"])
    if announce is not None:
        announce(model, estimate(model, settings, len(parts[0]), len(parts[1]), prefix))
    return finish(model, folder, settings, progress)


def begin(
    model: ImageModel,
    source: str,
    folder: RunFolder,
    parts: tuple[list[str], list[str]],
    settings: Settings,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Open the run folder: run.json, prompts.json; refuses prompts and limits that can't work before anything is generated."""
    calibration, unseen = parts
    prefix = model.encode([*calibration, *unseen]).ids.shape[1]
    limited = settings.keep is not None or settings.memory is not None
    facts = {"limit": limit_facts(limit_of(model, settings, prefix), settings)} if limited else {}
    kept = {name: value for name, value in vars(settings).items() if name not in ("batch_size",)}
    asked = {**kept, "prompts": [*calibration, *unseen]}
    here = machine(model.device, model.dtype)
    folder.begin(model.shape, lasting_name(source), asked, here, resume=resume, overwrite=overwrite)
    warn_of_unknown_words(model, [*calibration, *unseen])
    folder.note(prefix=prefix, seed=settings.seed, **facts)
    write_json(folder.path / "prompts.json", {"calibration": calibration, "unseen": unseen})


def finish(model: ImageModel, folder: RunFolder, settings: Settings, progress: Progress | None = None) -> Path:
    """Every step of `folder` that is not done yet, then the report."""
    prompts = read_prompts_of(folder)
    if not folder.done("trace"):
        trace_step(model, folder, prompts["calibration"], settings, progress)
    if not folder.done("heads"):
        heads_step(folder, model, settings)
    if not folder.done("search"):
        search_step(model, folder, settings, progress)
    if not folder.done("compare"):
        compare_step(model, folder, prompts["unseen"], settings, progress)
    if not folder.done("generate"):
        generate_step(model, folder, settings, progress)
    return write_report(folder.path)


def read_prompts_of(folder: RunFolder) -> dict[str, list[str]]:
    """The prompts that a run was begun with: `calibration` and `unseen`."""
    prompts = read_json(folder.path / "prompts.json")
    lists = [prompts.get(name) for name in ("calibration", "unseen")] if isinstance(prompts, dict) else [None]
    if not all(isinstance(part, list) for part in lists):
        raise DataError(
            f"{folder.path / 'prompts.json'}: lacks the lists of calibration and unseen prompts that a run is begun with; "
            "start another run, in a folder of its own or with --overwrite."
        )
    return prompts


def open_run(path: str | Path, device: str = "auto", dtype: str | None = None) -> tuple[ImageModel, RunFolder]:
    """Load the model that a run folder is about.

    Raises:
        DataError: no run folder, its model's folder is gone, or its weights are others now.
        ModelError: the model cannot be loaded.
    """
    folder = RunFolder(Path(path))
    model = load_model(source_of(folder), device=device, dtype=dtype)
    folder.check_model(model.shape)
    return model, folder


def settings_of(folder: RunFolder, **changes: object) -> Settings:
    """The settings a run was begun with, with some changed."""
    kept = {name: value for name, value in folder.read()["settings"].items() if name in vars(Settings())}
    return Settings(**{**kept, **changes})
