"""Contact sheets: every image at its place, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headscope.errors import DataError
from headscope.reporting import contact_sheet


def plain(colour: tuple[int, int, int], side: int = 10) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def boxes(sheet: Path, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(first column, first row) and size of everything in exactly this colour."""
    found = (np.asarray(Image.open(sheet)) == colour).all(-1)
    rows, columns = np.nonzero(found)
    return [(int(columns.min()), int(rows.min())), (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)]


def test_the_images_of_a_prompt_stand_side_by_side_at_the_scale_asked_for(tmp_path: Path) -> None:
    red, blue = (255, 0, 0), (0, 0, 255)
    sheet = contact_sheet([("a cat", [plain(red), plain(blue)])], ["full", "policy"], tmp_path / "sheet.png", scale=3)
    (left, top), size = boxes(sheet, red)
    (right, level), other = boxes(sheet, blue)
    assert size == other == (30, 30)
    assert level == top
    assert right == left + 30 + 2


def test_forty_eight_samples_fit_a_grid_of_which_every_cell_is_filled_in_order(tmp_path: Path) -> None:
    colours = [(5 * n + 5, 255 - 5 * n, 128) for n in range(48)]
    rows = [(f"prompt {n}", [plain(colour, 64)]) for n, colour in enumerate(colours)]
    sheet = contact_sheet(rows, [], tmp_path / "sheet.png")
    places = [boxes(sheet, colour)[0] for colour in colours]
    assert places == sorted(places, key=lambda place: (place[1], place[0]))
    assert len({x for x, _ in places}) > 3
    assert Image.open(sheet).width <= 1200


def test_pillow_images_of_any_mode_are_taken(tmp_path: Path) -> None:
    images = [Image.new("L", (8, 8), 90), Image.new("RGBA", (8, 8), (0, 255, 0, 255))]
    sheet = contact_sheet([("grey and green", images)], [], tmp_path / "sheet.png")
    assert boxes(sheet, (0, 255, 0))[1] == (16, 16)
    assert boxes(sheet, (90, 90, 90))[1] == (16, 16)


def test_a_prompt_too_long_for_its_cell_is_cut_and_the_sheet_keeps_its_size(tmp_path: Path) -> None:
    short = contact_sheet([("one two three four five six", [plain((9, 9, 9))])], [], tmp_path / "short.png", scale=4)
    long = contact_sheet([("word " * 500, [plain((9, 9, 9))])], [], tmp_path / "long.png", scale=4)
    assert Image.open(short).size == Image.open(long).size


@pytest.mark.parametrize(
    "rows", [[], [("a", [plain((1, 1, 1))]), ("b", [])], [("a", [plain((1, 1, 1))] * 2), ("b", [plain((1, 1, 1))])]]
)
def test_a_sheet_with_nothing_to_show_or_uneven_cells_is_refused(
    tmp_path: Path, rows: list[tuple[str, list[np.ndarray]]]
) -> None:
    with pytest.raises(DataError):
        contact_sheet(rows, [], tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_a_word_wider_than_its_cell_does_not_run_into_the_next_one(tmp_path: Path) -> None:
    rows = [("w" * 60, [plain((9, 9, 9), 32)]), ("", [plain((8, 8, 8), 32)])]
    sheet = contact_sheet(rows, [], tmp_path / "sheet.png")
    left, top = boxes(sheet, (8, 8, 8))[0]
    below = np.asarray(Image.open(sheet))[top + 64 :, left:]
    assert (below == 255).all()  # nothing under the second image, whose prompt is empty
