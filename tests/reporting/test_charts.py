"""Charts of a page: hand-made numbers, shapes that can be counted, titles that can be read."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from matplotlib.colors import to_hex

from headscope.geometry import Geometry
from headscope.policy import CacheSpec, Policy
from headscope.policy.shape import ModelShape
from headscope.reporting import charts, head_charts
from headscope.reporting.footprints import _reach, described, footprint
from headscope.reporting.style import COLOURS, apart, blank, hover, name_ends, save_figure, styled, svg

SHAPE = ModelShape("drawn", 2, 2, 2, 8, Geometry(4, 4), "a" * 64, "b" * 64)


def footprint_with(**places: float) -> torch.Tensor:
    """4 x 7 mass; up1_left2 is one row up, two columns left."""
    mass = torch.zeros(4, 7)
    for name, share in places.items():
        up, across = re.findall(r"-?\d+", name.replace("left", "-"))
        mass[int(up), 3 + int(across)] = share
    return mass


@pytest.mark.parametrize(
    ("mass", "said"),
    [
        (footprint_with(up0_0=1.0), "100 % on itself"),
        (footprint_with(up0_left1=0.75, up1_0=0.25), "75 % on its own row, 1 to the left; 25 % on the row above"),
        (footprint_with(up2_2=3.0, up1_0=0.1), "97 % on 2 rows above, 2 to the right"),
        (torch.ones(4, 7), "90 % of it spread over 26 places"),  # 26 / 28 is the first share above .9
    ],
)
def test_a_footprint_is_told_in_words(mass: torch.Tensor, said: str) -> None:
    assert described(mass) == said


def test_a_footprint_without_mass_is_drawn_empty() -> None:
    drawn = svg(footprint(torch.zeros(4, 7), "spatial", "L0H0"))
    assert "nan" not in drawn
    assert "var(--spatial)" not in drawn


def test_a_footprint_is_cropped_to_where_nine_tenths_lie_but_not_closer_than_three_rows() -> None:
    mass = torch.zeros(24, 47)
    mass[1, 23] = 1.0
    assert _reach(mass.numpy(), 23) == (3, 5)
    mass[1, 23] = 0.5
    mass[9, 23] = 0.5
    assert _reach(mass.numpy(), 23) == (9, 11)


def test_a_footprint_s_opacity_is_the_square_root_of_the_share_and_nothing_is_drawn_for_nothing() -> None:
    mass = footprint_with(up0_0=0.8, up1_0=0.2)
    cells = [patch for patch in footprint(mass, "semantic", "L0H0").axes[0].patches if patch.get_alpha() is not None]
    assert [patch.get_alpha() for patch in cells] == [0.5, 1.0]
    heights = [float(patch.get_path().vertices[:, 1].mean()) for patch in cells]
    assert heights[0] == pytest.approx(heights[1] + 1)  # one row up


def titles(drawn: str) -> list[str]:
    return re.findall(r"<title>([^<]*)</title>", drawn)


def test_the_map_takes_its_hue_from_the_class_and_marks_doubt() -> None:
    table = pd.DataFrame({"layer": [0, 0, 1, 1], "kv_head": [0, 1, 0, 1], "class": ["spatial", "semantic"] * 2})
    # The class comes from the mixture, the score from the place between the centres: they may differ near the middle.
    table["semantic_score"], table["confidence"] = [0.02, 0.45, 0.4, 0.999], [1.0, 0.6, 1.0, 1.0]
    figure = head_charts.class_map(table)
    _, cells, doubt = figure.axes[0].collections
    assert [to_hex(colour) for colour in cells.get_facecolor()] == [COLOURS["spatial"], COLOURS["semantic"]] * 2
    assert len(doubt.get_offsets()) == 1
    drawn = svg(figure)
    assert titles(drawn)[1] == "layer 0 head 1: semantic, semantic score 0.45, confidence 0.60"
    assert [text.get_text() for text in figure.axes[0].texts[:4]] == [".02", ".45", ".40", "1"]


def test_the_bytes_beside_the_layers_are_those_of_the_policy() -> None:
    policy = Policy.uniform(SHAPE, window=4, heavy=torch.tensor([[0, 3], [2, 0]], dtype=torch.int32), stride=4, prefix=5)
    spec = CacheSpec(SHAPE, 5, batch=3, streams=2, dtype="float16")
    drawn = svg(head_charts.kept(policy, spec))
    told = [float(number) for number in re.findall(r"· ([\d.]+) KiB", drawn)]
    assert len(told) == 2
    assert sum(told) == pytest.approx(spec.bytes_of(policy) / 1024, abs=0.02)
    assert titles(drawn)[1].startswith("layer 0 head 1: 4 recent, 3 by score")


def test_a_head_without_a_heavy_set_waits_for_no_choice() -> None:
    policy = Policy.uniform(SHAPE, window=3, heavy=0, stride=4, prefix=0)
    window, buffer, _ = (
        [np.ptp(path.vertices[:, 1]) for path in kind.get_paths()]
        for kind in head_charts.kept(policy, CacheSpec(SHAPE, 0)).axes[0].collections[:3]
    )
    assert len(buffer) == 4
    assert window[0] == pytest.approx(3 * buffer[0])  # one slot for the query itself


def test_a_bar_is_as_wide_as_its_bits_and_says_them() -> None:
    bits = torch.tensor([[16, 8], [4, 16]], dtype=torch.uint8)
    policy = Policy.uniform(SHAPE, window=3, heavy=2, anchor=1, stride=4, prefix=0, bits=bits)
    figure = head_charts.kept(policy, CacheSpec(SHAPE, 0))
    anchor, window, heavy, buffer, _ = (
        [np.ptp(path.vertices[:, 0]) for path in kind.get_paths()] for kind in figure.axes[0].collections[:5]
    )
    for kind in (window, heavy, buffer):
        assert np.divide(kind, anchor) == pytest.approx([1, 0.5, 0.25, 1])
    assert anchor == pytest.approx([anchor[0]] * 4)
    assert titles(svg(figure))[1].startswith("layer 0 head 1: 3 recent, 2 by score, 1 first tokens, in 8 bits, ")


def test_the_search_line_falls_and_never_rises_and_failed_trials_are_left_out() -> None:
    labels = ["preset h2o", "table trial", "table trial", "table trial", "table trial"]
    states = ["complete", "complete", "fail", "complete", "pruned"]
    trials = pd.DataFrame({"label": labels, "kl": [0.2, 0.4, None, 0.1, 0.01], "state": states})
    figure = charts.history(trials)
    heights = np.asarray(figure.axes[0].lines[0].get_ydata())
    assert (np.diff(heights) <= 0).all()
    assert heights[-1] == 0.1  # one that was given up was measured on few images, so it is never the best
    drawn = svg(figure)
    assert [
        sum(title.startswith(kind) for title in titles(drawn)) for kind in ("table trial: ", "table trial, given up: ")
    ] == [2, 1]
    assert "4 policies, the best loses 0.1000" in drawn


def test_a_search_in_which_every_trial_loses_the_same_can_be_drawn() -> None:
    assert "nan" not in svg(charts.history(pd.DataFrame({"label": ["table trial"], "kl": [0.0], "state": ["complete"]})))


def test_losses_without_intervals_can_be_drawn_best_on_top() -> None:
    figure = charts.losses(pd.DataFrame({"method": ["full", "b", "searched"], "replay_kl": [0.0, 0.5, 0.25]}))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["searched", "b"]
    assert figure.axes[0].yaxis_inverted()


def test_a_page_s_figure_has_titles_the_page_s_colours_and_nothing_that_reaches_beyond_it() -> None:
    with styled():
        figure = blank(3, 2, 'said & "heard"')
        axes = figure.subplots()
        hover(axes.scatter([0, 1, 2], [1, 2, 3], s=9, color=COLOURS["spatial"]), ["a", "b & c", "d"])
        hover(axes.bar([0, 1], [1, 1])[0], "a bar <1>")
    drawn = svg(figure)
    root = ElementTree.fromstring(drawn.replace("xlink:", ""))
    assert sorted(title.text or "" for title in root.iter("title")) == ["a", "a bar <1>", "b & c", "d"]
    referred = {
        value[1:]
        for part in root.iter()
        for value in [part.get("href"), *re.findall(r"url\((.*?)\)", part.get("clip-path", ""))]
        if value
    }
    assert referred == {part.get("id") for part in root.iter()} - {None}
    assert root.get("aria-label") == 'said & "heard"'
    assert "var(--spatial)" in drawn
    assert "currentColor" in svg(charts.losses(pd.DataFrame({"method": ["searched"], "replay_kl": [0.25]})))
    assert COLOURS["spatial"] not in drawn
    assert not re.search(r"<style|<metadata|hover:|\d\.\d{3}", drawn)
    assert drawn == svg(figure)


def test_titles_that_are_not_one_an_item_are_an_error() -> None:
    with styled():
        figure = blank(3, 2)
        hover(figure.subplots().scatter([0, 1, 2], [1, 2, 3]), ["a", "b"])
    with pytest.raises(ValueError, match="zip"):
        svg(figure)


def test_an_svg_file_keeps_its_colours(tmp_path: Path) -> None:
    figure = charts.losses(pd.DataFrame({"method": ["searched"], "replay_kl": [0.25]}))
    text = save_figure(figure, tmp_path / "losses.svg").read_text()
    assert "var(" not in text
    assert titles(text) == ["searched: 0.2500 nats a token"]


def test_names_at_the_ends_of_lines_do_not_lie_on_each_other() -> None:
    with styled():
        figure = blank(4, 3)
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        name_ends(axes, [(1, 0.5, "a", "k"), (1, 0.51, "b", "k"), (1, 0.99, "c", "k"), (1, 1.0, "d", "k")])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in sorted(axes.texts, key=lambda text: text.get_text())]
    centres = [(box.y0 + box.y1) / 2 * 72 / figure.dpi for box in boxes]
    assert all(above - below > 9 for below, above in pairwise(centres))


def test_no_figure_knows_pyplot_and_nothing_loads_matplotlib_before_one_is_drawn() -> None:
    for file in Path(head_charts.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "import matplotlib.pyplot" not in text, file
        assert not re.search(r"^(import|from) (matplotlib|seaborn|scipy)", text, re.MULTILINE), file


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_are_moved_apart_inside_their_range_and_keep_their_order(places: list[float]) -> None:
    moved = apart(places, 15, 0, 100)
    ordered = [moved[i] for i in np.argsort(places, kind="stable")]
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(ordered))
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in moved)
