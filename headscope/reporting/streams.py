"""Where the prompt's meaning collects: how far keys and values differ between the two streams, token by token.

SSD (2510.18716) sees the difference collect at the margin columns of the image and calls it the emergent semantic sink.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from headscope.geometry import Geometry
from headscope.heads import SEMANTIC, SPATIAL
from headscope.reporting.style import COLOURS, OTHER, blank, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StreamMap:
    """How far the streams differ, cell by cell. Heads that do not differ at all (the first layer's) are left out.

    Attributes:
        by_class: class -> float32 [rows, cols], the difference of each cell relative to its head's mean, averaged over the
            heads of the class.
        heads: class -> how many heads that are.
    """

    by_class: dict[str, torch.Tensor]
    heads: dict[str, int]

    def columns(self, kind: str) -> torch.Tensor:
        """float32 [cols]: mean over the rows."""
        return self.by_class[kind].nanmean(0)

    def margins(self, kind: str) -> tuple[float, float]:
        """Mean of the leftmost and rightmost column, and of those between."""
        columns = self.columns(kind)
        return float(columns[[0, -1]].mean()), float(columns[1:-1].mean())

    def sentence(self) -> str:
        """Whether the margin columns carry more of the prompt than the others."""
        found = {kind: self.margins(kind) for kind in self.by_class}
        told = ", ".join(
            f"{edge:.2f} at the margins, {inner:.2f} between in {kind} heads" for kind, (edge, inner) in found.items()
        )
        more = [kind for kind, (margin, inner) in found.items() if margin > inner]
        if not more:
            answer = "The margin columns carry less of the prompt than the others here, so SSD's semantic sink does not show"
        elif len(more) == len(found):
            answer = "The margin columns carry more of the prompt than the others, as SSD describes its semantic sink"
        else:
            answer = f"The margin columns carry more of the prompt than the others in {more[0]} heads alone"
        return f"{answer}: the streams' keys and values differ by {told} (1 is a head's mean)."


def stream_map(divergence: torch.Tensor, table: pd.DataFrame, geometry: Geometry) -> StreamMap:
    """The difference by cell and class.

    Args:
        divergence: float32 [layers, KV heads, tokens fed], `cache_divergence` of a trace; tokens that were not fed count as
            none, ends of lines are left out.
        table: of `Heads`.
        geometry: of the image.
    """
    tokens = torch.full((*divergence.shape[:2], geometry.tokens), torch.nan)
    tokens[..., : divergence.shape[-1]] = divergence
    cells = tokens.unflatten(2, (geometry.rows, geometry.row_length))[..., : geometry.cols]
    mean = cells.nanmean((2, 3), keepdim=True)
    relative = cells / mean
    maps, heads = {}, {}
    for kind in (SPATIAL, SEMANTIC):
        chosen = [(r.layer, r.kv_head) for r in table[table["class"] == kind].itertuples() if mean[r.layer, r.kv_head] > 1e-12]
        if chosen:
            maps[kind] = torch.stack([relative[layer, head] for layer, head in chosen]).nanmean(0)
            heads[kind] = len(chosen)
    return StreamMap(maps, heads)


@styled()
def stream_figure(found: StreamMap) -> Figure:
    """A map a class, and both by column."""
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    top = max(float(values.nan_to_num(0).max()) for values in found.by_class.values())
    kinds = list(found.by_class)
    figure = blank(2.7 * len(kinds) + 4.0, 2.9)
    panels = figure.subplots(1, len(kinds) + 1, width_ratios=[1.0] * len(kinds) + [1.35])
    for axes, kind in zip(panels, kinds, strict=False):
        last = kind == kinds[-1]
        look = {"cmap": "mako_r", "vmin": 0, "vmax": top, "square": True, "xticklabels": False, "yticklabels": False}
        scale = {"shrink": 0.7, "label": "1: the head's mean"}
        sns.heatmap(found.by_class[kind].numpy(), ax=axes, cbar=last, cbar_kws=scale, **look)
        axes.set(title=f"{kind}, {found.heads[kind]} heads", xlabel="column", ylabel="row" if kind == kinds[0] else "")
    for kind in kinds:
        panels[-1].plot(found.columns(kind).numpy(), color=COLOURS[kind], marker="o", markersize=3, label=kind)
    panels[-1].axhline(1, color=OTHER, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
    panels[-1].set(title="by column", xlabel="column", ylabel="difference of the streams", ylim=(0, None))
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].legend()
    return figure
