"""The sensitivity table of a run: which kind, from which files of the run."""

from __future__ import annotations

from headscope.heads import SEMANTIC, Heads
from headscope.pipeline.opened import Run
from headscope.progress import renamed
from headscope.samples import Samples
from headscope.tracing import TraceDataset
from headscope.tuning import (
    Coverage,
    Groups,
    Losses,
    Replay,
    UsualAttention,
    every_head,
    losses_from,
    sensitivity_table,
    usual_attention,
)


def groups_of(run: Run) -> Groups | None:
    """What a table that is not of every head needs: classes and curves; None where every head is measured.

    Raises:
        DataError: no trace, or one that lacks layers or heads.
    """
    shape, folder = run.model.shape, run.folder
    if every_head(run.config.search.table, run.model, run.config.search.each_bits):
        return None
    heads = Heads.load(folder.heads).table
    semantic = heads.assign(semantic=heads["class"] == SEMANTIC).pivot(index="layer", columns="kv_head", values="semantic")
    return Groups(semantic.to_numpy(dtype=bool), Coverage(TraceDataset(folder.trace).curves(), shape))


def usual_of(run: Run, samples: Samples) -> UsualAttention | None:
    """What tokens usually receive on the run's calibration images; None where no head may compare with it."""
    config, where = run.config.search, run.folder.search / "usual.safetensors"
    return usual_attention(run.model, samples, where, run.progress) if config.compares else None


def losses_of(run: Run, samples: Samples, usual: UsualAttention | None) -> Losses:
    """Measure the run's table, or read it; with `usual`, options by the score `expected` are in it."""
    config, shape = run.config.search, run.model.shape
    few = Replay(run.model, samples.first(config.table_images), by_stream=False, usual=usual)
    progress = renamed(run.progress, "sensitivity of heads")
    where = run.folder.table(config.table_images)
    offered = (config.each_bits, config.options, config.each_prompt)
    table = sensitivity_table(few, config.table, groups_of(run), where, progress, *offered)
    return losses_from(table.losses, shape.layers, shape.kv_heads, shape.geometry)
