"""What a run knows that a policy needs to be transferred: its trace, and what its heads lost."""

from __future__ import annotations

from contextlib import suppress

from headscope.errors import DataError, HeadscopeError
from headscope.policy import ModelShape, Rule
from headscope.run_folder import RunFolder
from headscope.tracing import TraceDataset
from headscope.tuning import Seen, load_table, rule_of


def run_rule(run: RunFolder, shape: ModelShape, seen: Seen | None = None) -> Rule | None:
    """What a policy of a run carries so that it can be transferred; None where the run has no table of every head.

    Args:
        run: with a trace.
        shape: of its model.
        seen: what the trace says, where that is read already.
    """
    tables = sorted(run.search.glob("sensitivity*.parquet"), key=lambda path: (path.stat().st_mtime, path.name))
    for path in reversed(tables):
        with suppress(HeadscopeError):
            return rule_of(seen or seen_by(run, shape), load_table(path), shape)
    return None


def seen_by(run: RunFolder, shape: ModelShape) -> Seen:
    """What a run's trace says of each head.

    Args:
        run: with a trace.
        shape: of its model.

    Raises:
        DataError: no trace, one of other weights, or one that lacks layers, heads or statistics.
    """
    dataset = TraceDataset(run.trace)
    if dataset.meta.get("weights") != shape.weights:
        raise DataError(f"{run.trace}: is a trace of other weights than {run.json} names: trace again.")
    return Seen.of(dataset.heads(), dataset.curves(), shape)
