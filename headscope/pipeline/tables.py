"""The sensitivity table of a run: which kind, from which files of the run."""

from __future__ import annotations

from headscope.heads import Heads
from headscope.heads.files import SEMANTIC
from headscope.models.protocol import ImageModel
from headscope.pipeline.settings import Progress, Settings
from headscope.run_folder import RunFolder
from headscope.samples import Samples
from headscope.tracing.dataset import TraceDataset
from headscope.tuning import Replay
from headscope.tuning.measure.coverage import Coverage, Groups
from headscope.tuning.measure.table import HEADS, Table, kind_for, sensitivity_table


def groups_of(model: ImageModel, folder: RunFolder, kind: str) -> Groups | None:
    """What a table that is not of every head needs: classes and curves; None where `kind` measures every head.

    Raises:
        DataError: no trace, or one that lacks layers or heads.
    """
    if kind_for(kind, model.shape) == HEADS:
        return None
    heads = Heads.load(folder.heads).table
    semantic = heads.assign(semantic=heads["class"] == SEMANTIC).pivot(index="layer", columns="kv_head", values="semantic")
    return Groups(semantic.to_numpy(dtype=bool), Coverage(TraceDataset(folder.trace).curves(), model.shape))


def table_of(
    model: ImageModel, folder: RunFolder, samples: Samples, settings: Settings, progress: Progress | None = None
) -> Table:
    """Measure the run's table, or read it."""

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("sensitivity of heads", done, total, float("nan"))

    few = Replay(model, samples.select(range(min(settings.table_images, len(samples)))), by_stream=False)
    groups = groups_of(model, folder, settings.table)
    return sensitivity_table(few, settings.table, groups, folder.table(settings.table_images), tell)
