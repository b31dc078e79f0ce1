"""Tracing in shards: each worker traces a part of the images, and the parts become one trace."""

from __future__ import annotations

import os
from pathlib import Path

from headscope.models import load_model, source_of
from headscope.overwriting import clear_trace, remove_empty
from headscope.pipeline.opened import Run
from headscope.pipeline.recorded import calibration_images
from headscope.pipeline.steps.timed import timed
from headscope.pipeline.workers import Workers, map_tasks
from headscope.progress import of_task
from headscope.samples import Samples
from headscope.tracing import Selection, TraceDataset, merge_traces, trace


def trace_in_shards(run: Run, workers: Workers, *, selection: Selection | None = None) -> TraceDataset:
    """Generate the calibration images, trace a part of them in every worker, join the parts: calibration.parquet, trace/.

    A part that was finished before a stop is not traced again. The statistics are those of one process; the curves, sums
    over images, agree to the rounding of their order.

    Args:
        run: whose calibration prompts.
        workers: that share the work.
        selection: what to trace, everything of the default set unless given.
    """
    folder, model = run.folder, run.model
    with timed(folder, "trace"):
        samples = calibration_images(run)
        if (folder.trace / "trace.json").is_file():
            return TraceDataset(folder.trace)
        parts = min(workers.count, len(samples))
        source, device = source_of(folder), str(model.device)
        dtype = str(model.dtype).removeprefix("torch.")
        shards = folder.path / "trace-shards"
        each = [
            (source, device, dtype, str(folder.samples), number, parts, str(shards / f"{number:03d}"), selection)
            for number in range(parts)
        ]
        paths = map_tasks(trace_shard, each, workers, of_task(run.progress, "tracing in shards", parts))
        _keep(_joined(paths, shards / "joined"), folder.trace)
        for path in paths:
            clear_trace(Path(path))
        remove_empty(shards)
        return TraceDataset(folder.trace)


def _joined(paths: list[str], out: Path) -> Path:
    """The folder of the whole trace: the only part, or all of them merged into `out`."""
    if len(paths) == 1:
        return Path(paths[0])
    clear_trace(out)  # of a run that was stopped while it merged
    return merge_traces(paths, out).path


def _keep(trace: Path, out: Path) -> None:
    """Move a trace's files into `out`, where others may lie; trace.json, which says that it is whole, comes last."""
    out.mkdir(exist_ok=True)
    for file in sorted(trace.iterdir(), key=lambda file: file.name == "trace.json"):
        os.replace(file, out / file.name)
    trace.rmdir()


def trace_shard(
    source: str, device: str, dtype: str, samples: str, number: int, parts: int, out: str, selection: Selection | None
) -> str:
    """One worker's part: of n images those from number * n / parts up to the next part's.

    Args:
        source: where the model comes from.
        device: to load it on.
        dtype: of the model, such as "float32".
        samples: file of all images, as tokens.
        number: of the part, from 0.
        parts: how many there are.
        out: folder for its trace; goes on with what is there.
        selection: what to trace, everything of the default set unless given.

    Returns:
        The folder of its trace, `out`.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    every = Samples.load(samples)
    mine = range(number * len(every) // parts, (number + 1) * len(every) // parts)
    model = load_model(source, device=device, dtype=dtype)
    trace(model, every.select(mine), Path(out), selection=selection, resume=Path(out).exists())
    return out
