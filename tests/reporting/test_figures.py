"""Drawings and words: hand-made numbers, places that can be counted."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headscope.geometry import Geometry
from headscope.policy import Policy
from headscope.policy.footprint import policy_bytes
from headscope.policy.policy import ModelShape
from headscope.reporting import figures, head_figures, words
from headscope.reporting.svg import Axes, apart, heat, ticks

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
    assert head_figures.described(mass).replace("\u00a0", " ") == said


def test_a_footprint_without_mass_is_drawn_empty() -> None:
    drawn = head_figures.footprint(torch.zeros(4, 7), "Footprint")
    assert "heat" not in drawn
    assert "nan" not in drawn


def test_a_footprint_is_cropped_to_where_nine_tenths_lie_but_not_closer_than_three_rows() -> None:
    mass = torch.zeros(24, 47)
    mass[1, 23] = 1.0
    assert head_figures._reach(mass.numpy(), 23) == (3, 5)
    mass[1, 23] = 0.5
    mass[9, 23] = 0.5
    assert head_figures._reach(mass.numpy(), 23) == (9, 11)


def test_the_heat_is_the_square_root_of_the_share_of_the_largest_and_nothing_is_drawn_for_nothing() -> None:
    drawn = heat(np.array([[1.0, 0.25], [0.0, 0.0]]), cell=10)
    assert [re.search(r'opacity="([\d.]+)"', part).group(1) for part in drawn] == ["0.5", "1"]  # type: ignore[union-attr]
    assert [part.count("M") for part in drawn] == [1, 1]


def test_the_map_takes_its_hue_from_the_class_and_marks_doubt() -> None:
    table = pd.DataFrame({"layer": [0, 0, 1, 1], "kv_head": [0, 1, 0, 1], "class": ["spatial", "semantic"] * 2})
    # The class comes from the mixture, the score from the place between the centres: they may differ near the middle.
    table["semantic_score"], table["confidence"] = [0.02, 0.45, 0.4, 0.99], [1.0, 0.6, 1.0, 1.0]
    drawn = head_figures.head_map(table)
    assert drawn.count('class="semantic"') == drawn.count('class="spatial"') == 2
    assert drawn.count('class="doubt"') == 1
    assert "layer 0 head 1: semantic, semantic score 0.45, confidence 0.60" in drawn


def test_the_bytes_beside_the_layers_are_those_of_the_policy() -> None:
    policy = Policy.uniform(SHAPE, window=4, heavy=torch.tensor([[0, 3], [2, 0]], dtype=torch.int32), stride=4, prefix=5)
    drawn = head_figures.budgets(policy, "float16", 6)
    told = [float(number) for number in re.findall(r"· ([\d.]+)\u00a0KiB", drawn)]
    assert len(told) == 2
    assert sum(told) == pytest.approx(policy_bytes(policy, batch=3, streams=2, dtype="float16") / 1024, abs=0.02)
    assert "layer 0 head 1: 4 recent, 3 by score" in drawn


def test_a_head_without_a_heavy_set_waits_for_no_choice() -> None:
    policy = Policy.uniform(SHAPE, window=3, heavy=0, stride=4, prefix=0)
    heights = re.findall(r'height="([\d.]+)" class="buffer"', head_figures.budgets(policy, "float32", 1))
    tokens = re.findall(r'height="([\d.]+)" class="spatial"', head_figures.budgets(policy, "float32", 1))
    assert len(heights) == 4
    assert float(tokens[0]) == pytest.approx(3 * float(heights[0]))  # one slot for the query itself


def test_the_search_line_falls_and_never_rises_and_failed_trials_are_left_out() -> None:
    labels = ["preset h2o", "table trial", "table trial", "table trial", "table trial"]
    states = ["complete", "complete", "fail", "complete", "pruned"]
    trials = pd.DataFrame({"label": labels, "kl": [0.2, 0.4, None, 0.1, 0.01], "state": states})
    drawn = figures.history(trials)
    line = re.search(r'd="([^"]+)" class="line best-line"', drawn)
    assert line is not None
    heights = [float(step.split()[1]) for step in re.split(r"[ML]", line.group(1))[1:]]
    assert heights == sorted(heights)  # down the page is less
    assert drawn.count("table trial: ") == 2
    assert drawn.count("table trial, given up: ") == 1  # measured on few pictures, so it is never the best
    assert "4 policies, the best loses 0.1000" in drawn


def test_a_search_in_which_every_trial_loses_the_same_can_be_drawn() -> None:
    assert "nan" not in figures.history(pd.DataFrame({"label": ["table trial"], "kl": [0.0], "state": ["complete"]}))


def test_losses_without_intervals_can_be_drawn_best_on_top() -> None:
    drawn = figures.losses(pd.DataFrame({"method": ["full", "b", "searched"], "replay_kl": [0.0, 0.5, 0.25]}))
    assert "full" not in drawn
    assert drawn.index(">searched<") < drawn.index(">b<")
    stems = [float(x) for x in re.findall(r'L([\d.]+) [\d.]+" class="stem', drawn)]
    left = float(re.findall(r'd="M([\d.]+) [\d.]+ L[\d.]+ [\d.]+" class="stem', drawn)[0])
    assert (stems[0] - left) * 2 == pytest.approx(stems[1] - left, abs=0.1)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_are_moved_apart_inside_their_range_and_keep_their_order(places: list[float]) -> None:
    moved = apart(places, 15, 0, 100)
    ordered = [moved[i] for i in np.argsort(places, kind="stable")]
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(ordered))
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in moved)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert len(marks) <= 6
    assert all(low - span * 1e-3 <= mark <= low + span * 1.01 for mark in marks)


def test_a_logarithmic_axis_puts_the_geometric_mean_in_the_middle() -> None:
    axes = Axes(100, 100, (0, 1), (0.01, 1), log=True)
    low, middle, high = (axes.place(0, value)[1] for value in (0.01, 0.1, 1))
    assert middle == pytest.approx((low + high) / 2)
    assert axes.place(0, 0)[1] == low  # what has no logarithm lies on the edge


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(0.19987, "A fifth"), (0.5, "Half"), (0.3333, "A third"), (0.1, "A tenth"), (0.23, "23 %"), (0.2051, "21 %")],
)
def test_simple_fractions_are_said_as_such(ratio: float, said: str) -> None:
    assert words.share_of(ratio).replace("\u00a0", " ") == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.012345, "0.0123"), (0.00042, "0.00042"), (-1.2e-10, "0"), (3.14159, "3.1416"), (2e-5, "2e-05")]
)
def test_nats_say_something_at_every_size(value: float, said: str) -> None:
    assert words.nats(value) == said


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [(1_311_488, "1.25 MiB"), (512, "512 bytes"), (2048, "2.00 KiB"), (58.7 * 2**30, "58.7 GiB"), (300 * 2**20, "300 MiB")],
)
def test_bytes_are_said_in_their_own_unit(nbytes: float, said: str) -> None:
    assert words.size(nbytes).replace("\u00a0", " ") == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.53, "0.5 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (93, "1 min 33 s"), (7260, "2 h 1 min")]
)
def test_durations_are_said_in_their_own_unit(seconds: float, said: str) -> None:
    assert words.duration(seconds).replace("\u00a0", " ") == said
