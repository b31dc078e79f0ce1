"""Several traces of one model, made on several machines say, become one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import DataError
from headscope.facts import plain, shown
from headscope.samples import Samples
from headscope.tracing.dataset import TraceDataset, write_finished
from headscope.tracing.files import BY_TOKEN
from headscope.tracing.trace import images_hash

SAME = ("architecture", "weights", "geometry", "guidance", "definitions", "selection", "statistics", "cache")


def merge_traces(paths: Sequence[str | Path], out: str | Path) -> TraceDataset:
    """Write the trace `out` of all images of `paths`, in their order; images are numbered anew.

    Args:
        paths: folders of finished traces, two or more.
        out: the folder to write, which is not there yet.

    Raises:
        DataError: fewer than two traces; one that is unfinished or damaged, of another model, other definitions or another
            selection than the first; an image that is in two of them; or a folder `out` that is there already.
    """
    out = Path(out)
    if len(paths) < 2:
        raise DataError(f"Found {len(paths)} trace, expected at least two to merge.")
    if os.path.exists(out):
        raise DataError(f"{out}: exists already; choose another folder for `out`.")
    traces = [TraceDataset(path) for path in paths]
    first = traces[0]
    for other in traces[1:]:
        for name in SAME:
            here, there = other.meta.get(name), first.meta.get(name)
            if here != there:
                raise DataError(
                    f"{other.path}: is of other {name} than {first.path} ({_apart(here, there)}); merge only traces of one "
                    "model, made in one way."
                )
    samples = _joined([trace.samples() for trace in traces], traces)
    tables, sums, before = [], dict[str, torch.Tensor](), 0
    for trace in traces:
        count = trace.meta["samples"]
        table = trace.heads(band=None)
        keys = ["sample", "stream", "layer", "head", "band"]
        prefix = trace.by_token()
        table = table.merge(prefix, on=keys, how="left")
        tables.append(table.assign(sample=table["sample"] + before))
        before += count
        curves = trace.kept_curves()
        if sums and (alone := sorted(set(sums) ^ set(curves))):
            raise DataError(f"{trace.path}: has other curves than {first.path} ({', '.join(alone)} in one of them only).")
        for name, value in curves.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.double() * count
    means = {name: (value / before).float().contiguous() for name, value in sums.items()}
    joined = pd.concat(tables, ignore_index=True)
    joined[BY_TOKEN] = joined[BY_TOKEN].astype(object)
    samples.save(out / "samples.parquet")
    meta = {
        **first.meta,
        "samples": before,
        "images": images_hash(samples),
        "merged": [str(trace.path) for trace in traces],
    }
    write_finished(out, joined, means, meta)
    return TraceDataset(out)


def _apart(here: Any, there: Any) -> str:
    """What differs, of two values or of two tables of them."""
    if isinstance(here, dict) and isinstance(there, dict):
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        return ", ".join(f"{plain(name)} {shown(here.get(name))}, there {shown(there.get(name))}" for name in names[:3])
    if isinstance(here, list) and isinstance(there, list):
        alone = sorted(set(map(str, here)) ^ set(map(str, there)))
        return f"{', '.join(alone[:3])} in one of them only" if alone else "in another order"
    return f"{shown(here)}, there {shown(there)}"


def _joined(parts: list[Samples], traces: list[TraceDataset]) -> Samples:
    seen: dict[tuple[str, bytes], Path] = {}
    for samples, trace in zip(parts, traces, strict=True):
        for prompt, tokens in zip(samples.prompts, samples.tokens, strict=True):
            key = (prompt, tokens.numpy().tobytes())
            if key in seen:
                raise DataError(f"{trace.path}: the image of '{prompt[:60]}' is in {seen[key]} too; leave one of the two out.")
            seen[key] = trace.path
    return replace(
        parts[0],
        prompts=[prompt for part in parts for prompt in part.prompts],
        texts=[text for part in parts for text in part.texts],
        seeds=torch.cat([part.seeds for part in parts]),
        tokens=torch.cat([part.tokens for part in parts]),
    )
