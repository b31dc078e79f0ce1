"""All steps for one model, into one run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headscope.errors import ModelError
from headscope.models import ImageModel, kind_of
from headscope.pipeline.estimate import Estimate, estimate
from headscope.pipeline.needs import fitting_needs
from headscope.pipeline.opened import Run, asked_for, begin
from headscope.pipeline.steps import compare_step, generate_step, heads_step, search_step, trace_step
from headscope.progress import Progress
from headscope.reporting import write_report
from headscope.tuning import RunConfig


def run(
    config: RunConfig | str,
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[ImageModel, Estimate], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trace, classify, search, compare, generate and report.

    Args:
        config: every knob, or the name of a model to run with the defaults.
        out: the run folder.
        device: see `load_model`.
        resume: go on with the run that the folder holds.
        overwrite: start anew: remove what headscope wrote into the folder, nothing else.
        announce: told the model and what the run will take, before it begins.
        progress: told what is being done, see `headscope.progress`.

    Returns:
        Path of report.html.

    Raises:
        HeadscopeError: one sentence for the user; what was written before stays, `resume=True` continues there. What can't fit
            into memory is refused before anything is written.
    """
    config = RunConfig(model=config) if isinstance(config, str) else config
    if not isinstance(config, RunConfig):
        raise ModelError(
            f"run: expected a RunConfig or the name of a model, found {kind_of(config)}; `register_model` gives a model a name."
        )
    asked = asked_for(config, device=device)
    needs = fitting_needs(asked)
    run = begin(asked, out, resume=resume, overwrite=overwrite, progress=progress)
    if announce is not None:
        announce(run.model, estimate(asked, needs))
    return finish(run)


def finish(run: Run) -> Path:
    """Every step that is not done yet, then the report."""
    steps = {
        "trace": trace_step,
        "heads": heads_step,
        "search": search_step,
        "compare": compare_step,
        "generate": generate_step,
    }
    for name, step in steps.items():
        if not run.folder.done(name):
            step(run)  # type: ignore[operator]
    return write_report(run.folder.path)
