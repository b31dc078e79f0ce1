"""Every figure of a run folder, as files."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from headscope.errors import DataError
from headscope.reporting import charts, feature_charts, head_charts
from headscope.reporting.data import RunData, read_run
from headscope.reporting.explain import parse_head
from headscope.reporting.footprints import footprints
from headscope.reporting.streams import stream_figure, stream_map
from headscope.reporting.style import FORMATS, save_figure
from headscope.tracing import STATISTICS, TraceDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS = ("sparsity_1", "row_above", "row_above_right", "prefix_mass", "margin_mass", "column_concentration")
CHOSEN = 4  # most spatial and most semantic heads, whose footprints are drawn


def write_figures(
    run_folder: str | Path,
    out: str | Path | None = None,
    *,
    statistics: Sequence[str] = (),
    heads: str | None = None,
    kind: str = "png",
) -> list[Path]:
    """Write map-*.*, pairs.*, decay.*, footprints.*, dendrogram.*, layers.* and, where it was measured, stability.*.

    Args:
        run_folder: whose heads are classified.
        out: folder, by default `figures` in the run folder.
        statistics: for head maps (default MAPS); "all" for every one.
        heads: names such as "L7H9,L7H10" for the footprints (default: the most spatial and the most semantic ones).
        kind: png, svg or pdf.

    Raises:
        DataError: the heads are not classified, an unknown statistic, head or format.
    """
    data = read_run(run_folder)
    if data.heads is None or data.curves is None:
        command = shlex.join(["headscope", "heads", str(data.path)])
        raise DataError(f"{data.path}: the heads are not classified yet; run `{command}` first.")
    if kind not in FORMATS:
        raise DataError(f"format {kind}: unknown; known are {', '.join(FORMATS)}.")
    names = _statistics(data.path, statistics)
    chosen = _chosen(data, heads)
    folder = data.path / "figures" if out is None else Path(out)
    return [save_figure(draw(), folder / f"{name}.{kind}") for name, draw in _figures(data, names, chosen)]


def _figures(data: RunData, names: list[str], chosen: list[tuple[int, int]]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    assert data.heads is not None
    table, row_length = data.heads.table, data.geometry.row_length
    traced = TraceDataset(data.path / "trace").heads(columns=names, stream="conditional")
    group = int(data.run["model"]["query_heads"]) // int(data.run["model"]["kv_heads"])
    for name in names:
        unit = STATISTICS[name].unit if name in STATISTICS else ""
        head = "head" if group > 1 else "kv_head"
        rows = traced if group > 1 else traced.rename(columns={"head": "kv_head"})
        yield f"map-{name}", lambda n=name, u=unit, h=head, r=rows: head_charts.statistic_map(r, n, u, h)  # type: ignore[misc]
    footprint, lag_mass = data.by_kv_head("footprint"), data.by_kv_head("lag_mass")
    yield "footprints", lambda: footprints(footprint, chosen, *_labels(table, chosen))
    yield "decay", lambda: head_charts.decay(lag_mass, table, row_length)
    yield "layers", lambda: feature_charts.class_by_layer(table)
    if feature_charts.telling(table):  # a published map has scores alone
        yield "pairs", lambda: feature_charts.pair_plot(table)
        if len(table) > 2:
            yield "dendrogram", lambda: feature_charts.dendrogram(table)
    if data.curves is not None and "cache_divergence" in data.curves and data.geometry.rows > 1:
        found = stream_map(data.curves["cache_divergence"], table, data.geometry)
        if found.by_class:
            yield "streams", lambda: stream_figure(found)
    if data.stability is not None:
        stability = data.stability
        yield "stability", lambda: charts.agreement(stability, 5.6)


def _statistics(path: Path, asked: Sequence[str]) -> list[str]:
    known = TraceDataset(path / "trace").statistics()
    if "all" in asked:
        return known
    names = list(dict.fromkeys(asked or [name for name in MAPS if name in known]))
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"statistic {unknown[0]}: not in this trace, which has {', '.join(known)}.")
    return names


def _chosen(data: RunData, heads: str | None) -> list[tuple[int, int]]:
    assert data.heads is not None
    model = data.run["model"]
    if heads is not None:
        return [parse_head(name, int(model["layers"]), int(model["kv_heads"])) for name in heads.split(",") if name.strip()]
    ordered = data.heads.table.sort_values(["semantic_score", "layer", "kv_head"])
    count = min(CHOSEN, max(len(ordered) // 2, 1))
    ends = pd.concat([ordered.head(count), ordered.tail(count)[::-1]]).drop_duplicates(["layer", "kv_head"])
    return [(int(row.layer), int(row.kv_head)) for row in ends.itertuples()]


def _labels(table: pd.DataFrame, chosen: list[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """Class of each, and words beside its name."""
    rows = table.set_index(["layer", "kv_head"]).loc[chosen]
    kinds = [str(kind) for kind in rows["class"]]
    return kinds, [f"{kind}, {score:.2f}" for kind, score in zip(kinds, rows["semantic_score"], strict=True)]
