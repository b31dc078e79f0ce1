"""Raster order, with and without row ends."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from headscope.errors import HeadscopeError
from headscope.geometry import Geometry


def test_row_ends_are_tokens_but_no_cells() -> None:
    geometry = Geometry(2, 3, row_end=1)
    row, column, cell = geometry.coordinates()
    assert (geometry.tokens, geometry.cells, geometry.row_length) == (8, 6, 4)
    assert row.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert column.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert cell.tolist() == [True, True, True, False] * 2
    assert geometry.position(1, 2) == 6


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2))
def test_strides_are_divisors_and_multiples_of_a_row(rows: int, cols: int, row_end: int) -> None:
    geometry = Geometry(rows, cols, row_end)
    row = geometry.row_length
    expected = [n for n in range(1, geometry.tokens + 1) if row % n == 0 or n % row == 0]
    assert geometry.strides() == expected
    assert Geometry.from_dict(geometry.to_dict()) == geometry


def test_an_impossible_grid_or_stride_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="0 rows"):
        Geometry(0, 4)
    with pytest.raises(HeadscopeError, match="stride 5: expected 1, a divisor of a row"):
        Geometry(4, 4).check_stride(5)
    with pytest.raises(HeadscopeError, match="geometry: lacks cols"):
        Geometry.from_dict({"rows": 3})


def test_a_text_has_spans_in_place_of_rows() -> None:
    assert Geometry(24, 24, row_end=1).stride_row == 25
    assert Geometry(1, 256).stride_row == 16
    assert Geometry(1, 12).stride_row == 3
    assert Geometry(1, 7).stride_row == 1
    assert Geometry(1, 256).stride_row in Geometry(1, 256).strides()


@pytest.mark.parametrize("wrong", [{"rows": True}, {"cols": 1.0}, {"rows": 2**70}, {"row_end": -1}, {"cols": "4"}])
def test_a_grid_of_other_types_or_sizes_is_refused(wrong: dict) -> None:
    with pytest.raises(HeadscopeError, match=f"geometry: {next(iter(wrong))} is .*, expected a whole number"):
        Geometry.from_dict({"rows": 4, "cols": 4, "row_end": 0} | wrong)


def test_a_grid_of_more_tokens_than_any_model_has_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="expected at most"):
        Geometry.from_dict({"rows": 2**20, "cols": 2**20})


@pytest.mark.parametrize("grid", [Geometry(1, 1), Geometry(1, 12), Geometry(4, 6), Geometry(3, 4, 1), Geometry(5, 1)])
def test_a_stride_is_right_where_it_is_in_the_list(grid: Geometry) -> None:
    for stride in range(-2, 2 * grid.tokens + 2):
        if stride in grid.strides():
            grid.check_stride(stride)
        else:
            with pytest.raises(HeadscopeError, match=f"stride {stride}"):
                grid.check_stride(stride)
