"""`trace`: recorded pictures in, a trace dataset out."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import DataError
from headscope.models.protocol import ImageModel
from headscope.models.samples import Samples
from headscope.storage import write_json
from headscope.tracing.accumulators import Accumulated
from headscope.tracing.dataset import Parts, TraceDataset, read_meta
from headscope.tracing.hooks import Watched, watch
from headscope.tracing.statistics import DEFINITIONS, STATISTICS, lag_mass

STREAMS = ("conditional", "unconditional")
WHOLE_IMAGE = -1  # the band of rows that a row of the table is about
TOGETHER = 4  # pictures in one pass unless told; one to eight took 6 to 9 s of one core for 16 pictures of 256 tokens


def trace(
    model: ImageModel,
    samples: Samples,
    out: str | Path,
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    resume: bool = False,
) -> TraceDataset:
    """Trace every head over recorded pictures, into the folder `out`.

    Queries are the image tokens that the model is fed, t = 0 .. N - 2: they predict tokens 1 .. N - 1. The last prefix
    position, which predicts token 0, is no query, and neither is the rest of the prefix. Keys are the prefix without
    its padding, the image tokens before the query, and the query itself. Without guidance (scale 1) there is one stream.

    Args:
        batch_size: pictures in one pass, None for TOGETHER. progress: called with (pictures done, pictures in all).
        resume: go on with a stopped trace, or return a finished one; what is damaged is named in a warning and traced
            again.

    Raises:
        DataError: `out` holds a trace already and `resume` is False, or one of another model or other pictures, or
            files that are no trace; no pictures.
    """
    out = Path(out)
    batch_size = TOGETHER if batch_size is None else batch_size
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size}: expected at least one picture in a pass.")
    if len(samples) == 0:
        raise DataError("There is no picture to trace: give at least one prompt.")
    if samples.weights != model.shape.weights:
        raise DataError(f"The pictures are of other weights than {model.name} has: draw them with this model.")
    meta = _meta(model, samples)
    _claim(out, meta, resume)
    if read_meta(out)["complete"]:
        finished = TraceDataset(out)
        if (damage := finished.damage()) is None:
            return finished
        warnings.warn(f"{damage} It is traced again.", stacklevel=2)
        write_json(out / "trace.json", meta)
    samples.save(out / "samples.parquet")
    parts = Parts(out, len(samples))
    todo = parts.missing()
    for damaged in parts.damaged:
        warnings.warn(f"{damaged}: damaged, traced again", stacklevel=2)
    for start in range(0, len(todo), batch_size):
        numbers = todo[start : start + batch_size]
        watched = watch(model, samples.select(numbers))
        for row, number in enumerate(numbers):
            table, curves = _part(model, watched, row, len(numbers), number)
            parts.write(number, table, curves)
        if progress is not None:
            progress(len(samples) - len(todo) + start + len(numbers), len(samples))
    parts.compact()
    return TraceDataset(out)


def _part(
    model: ImageModel, watched: Watched, row: int, pictures: int, number: int
) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """The table and the curves of one picture."""
    geometry = model.shape.geometry
    tables, footprints, lags = [], [], []
    for layer, everything in enumerate(watched.layers):
        for stream in range(watched.streams):
            a = _one(everything, stream * pictures + row)
            heads = a.columns.shape[1]
            columns: dict[str, Any] = {
                "sample": number,
                "stream": STREAMS[stream],
                "layer": layer,
                "head": range(heads),
                "band": WHOLE_IMAGE,
            }
            columns |= {name: statistic(a, geometry)[0].float().cpu().numpy() for name, statistic in STATISTICS.items()}
            tables.append(pd.DataFrame(columns))
            if stream == 0:
                footprints.append((a.offsets[0] / a.queries).cpu())
                lags.append(lag_mass(a, geometry)[0].cpu())
    return pd.concat(tables, ignore_index=True), {
        "footprint": torch.stack(footprints),
        "lag_mass": torch.stack(lags).contiguous(),
    }


def _one(a: Accumulated, sequence: int) -> Accumulated:
    """One sequence of a batch."""
    at = slice(sequence, sequence + 1)
    return Accumulated(
        a.queries,
        a.prefix,
        a.prefix_seen[at],
        a.columns[at],
        a.squares[at],
        a.offsets[at],
        a.offsets_image[at],
        a.entropy[at],
        a.distance[at],
    )


def _meta(model: ImageModel, samples: Samples) -> dict[str, Any]:
    pictures = hashlib.sha256(samples.tokens.contiguous().numpy().tobytes())
    pictures.update(json.dumps([samples.prompts, samples.guidance]).encode())
    shape = model.shape
    return {
        "model": shape.name,
        "architecture": shape.architecture,
        "weights": shape.weights,
        "geometry": shape.geometry.to_dict(),
        "layers": shape.layers,
        "query_heads": shape.query_heads,
        "kv_heads": shape.kv_heads,
        "samples": len(samples),
        "guidance": samples.guidance,
        "pictures": pictures.hexdigest(),
        "definitions": DEFINITIONS,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "complete": False,
    }


def _claim(out: Path, meta: dict[str, Any], resume: bool) -> None:
    """Write trace.json, or check that the one that is there is of this trace."""
    file = out / "trace.json"
    if not file.exists():
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is a file, expected a folder to make; choose another one with --out.")
        # What starts with a dot is the temporary file of a run that was killed at once.
        if out.exists() and (others := sorted(p.name for p in out.iterdir() if not p.name.startswith("."))):
            raise DataError(f"{out}: holds other files ({others[0]}) and no trace; choose another folder with --out.")
        write_json(file, meta)
        return
    found = read_meta(out)
    for name in ("architecture", "weights", "pictures", "definitions"):
        if found.get(name) != meta[name]:
            raise DataError(
                f"{out}: holds a trace of other {name} ({str(found[name])[:12]}, now {str(meta[name])[:12]}); choose "
                "another folder with --out."
            )
    if not resume:
        raise DataError(f"{out}: holds a trace already; go on with --resume or choose another folder with --out.")
