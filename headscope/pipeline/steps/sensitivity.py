"""Each head alone, with a window, heavy tokens or both."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from headscope.heads import Heads
from headscope.models.protocol import ImageModel
from headscope.pipeline.settings import Progress, as_counts
from headscope.pipeline.steps.timed import timed
from headscope.policy.footprint import CacheSpec
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.storage import write_whole
from headscope.tuning import Needs, Replay, equal_options, measure_sensitivity, needs


def sensitivity_step(
    model: ImageModel,
    folder: RunFolder,
    keeps: Sequence[str],
    *,
    images: int = 8,
    stride: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Needs]:
    """Give each head alone a window, heavy tokens or both at equal bytes: sensitivity.parquet, needs.csv.

    Args:
        keeps: shares such as "20%". images: of the calibration images to replay. stride: of heavy heads, in tokens.
    Raises:
        DataError: the trace or heads step has not run. BudgetError: a share that holds no heavy token.
    """
    samples = Samples.load(folder.samples)
    heads = Heads.load(folder.heads)
    prefix = int(folder.read()["prefix"])
    spec = CacheSpec(model.shape, prefix, streams=1, dtype=str(model.dtype))
    asked = {keep: equal_options(keep, spec, stride) for keep in keeps}
    with timed(folder, "sensitivity"):
        losses = measure_sensitivity(
            Replay(model, samples.select(range(min(images, len(samples)))), by_stream=False),
            list(dict.fromkeys(option for options in asked.values() for option in options.values())),
            folder.sensitivity,
            stride=stride,
            progress=as_counts(progress, "each head alone"),
        )
        found = [needs(losses, heads.table, options, keep, seed) for keep, options in asked.items()]
    table = pd.concat([one.table.assign(keep=one.keep) for one in found], ignore_index=True)
    write_whole(folder.needs, lambda path: table.to_csv(path, index=False, float_format="%.6g"))
    said = {one.keep: {"correlation": one.correlation, "low": one.low, "high": one.high} for one in found}
    folder.note(needs={"stride": stride, "images": images, **said})
    return found
