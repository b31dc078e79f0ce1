"""Where the streams differ: hand-made differences, and what is said of them."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from headscope.geometry import Geometry
from headscope.reporting.streams import stream_figure, stream_map

HEADS = pd.DataFrame(
    {
        "layer": [0, 0, 1, 1],
        "kv_head": [0, 1, 0, 1],
        "class": ["spatial", "semantic", "spatial", "semantic"],
        "semantic_score": 0.5,
    }
)


def divergence(geometry: Geometry, margin: float) -> torch.Tensor:
    """Layer 0 does not differ; layer 1 by 1 a cell and by `margin` in the outer columns, its head 1 ten times as much."""
    row = torch.ones(geometry.row_length)
    row[0] = row[geometry.cols - 1] = margin
    values = row.repeat(geometry.rows)
    return torch.stack([torch.zeros(2, geometry.tokens), torch.stack([values, 10 * values])])[..., :-1]


@pytest.mark.parametrize("row_end", [0, 1])
def test_a_difference_made_by_hand_is_told_by_cell_and_class(row_end: int) -> None:
    geometry = Geometry(4, 5, row_end)
    found = stream_map(divergence(geometry, 3.0), HEADS, geometry)
    assert found.heads == {"spatial": 1, "semantic": 1}  # the first layer's heads say nothing
    for kind in ("spatial", "semantic"):
        margin, inner = found.margins(kind)
        assert margin / inner == pytest.approx(3.0)
        assert float(found.by_class[kind].nanmean()) == pytest.approx(1.0)
    assert "as SSD describes its semantic sink" in found.sentence()
    assert len(stream_figure(found).axes) == 4  # two maps, their scale, the columns


def test_margins_that_carry_less_are_said_to() -> None:
    geometry = Geometry(4, 5)
    assert "semantic sink does not show" in stream_map(divergence(geometry, 0.5), HEADS, geometry).sentence()


def test_caches_that_do_not_differ_say_nothing() -> None:
    geometry = Geometry(4, 5)
    assert stream_map(torch.zeros(2, 2, 19), HEADS, geometry).by_class == {}
