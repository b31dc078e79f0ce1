"""Each head alone, with a window, heavy tokens or both."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from headscope.heads import Heads
from headscope.pipeline.opened import Run
from headscope.pipeline.steps.timed import timed
from headscope.policy import CacheSpec
from headscope.samples import Samples
from headscope.storage import write_csv
from headscope.tuning import HeadAblation, Replay, ablate_heads, equal_options, measure_sensitivity


def sensitivity_step(run: Run, keeps: Sequence[str], *, images: int = 8, stride: int = 1, seed: int = 0) -> list[HeadAblation]:
    """Give each head alone a window, heavy tokens or both at equal bytes: sensitivity.parquet, ablation.csv.

    Args:
        run: whose calibration images and head classes.
        keeps: shares such as "20%".
        images: of the calibration images to replay.
        stride: of heavy heads, in tokens.
        seed: of the intervals.

    Raises:
        DataError: the trace or heads step has not run.
        BudgetError: a share that holds no heavy token.
    """
    folder, model = run.folder, run.model
    samples, heads = Samples.load(folder.samples), Heads.load(folder.heads)
    spec = CacheSpec(model.shape, run.prefix, streams=1, dtype=str(model.dtype))
    asked = {keep: equal_options(keep, spec, stride) for keep in keeps}
    with timed(folder, "sensitivity"):
        losses = measure_sensitivity(
            Replay(model, samples.first(images), by_stream=False),
            list(dict.fromkeys(option for options in asked.values() for option in options.values())),
            folder.sensitivity,
            stride=stride,
            progress=run.progress,
        )
        found = [ablate_heads(losses, heads.table, options, keep, seed) for keep, options in asked.items()]
    table = pd.concat([one.table.assign(keep=one.keep) for one in found], ignore_index=True)
    write_csv(table, folder.ablation, float_format="%.6g")
    said = {one.keep: {"correlation": one.correlation, "low": one.low, "high": one.high} for one in found}
    folder.note(ablation={"stride": stride, "images": images, **said})
    return found
