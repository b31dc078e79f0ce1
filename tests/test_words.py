"""Words: one rule for each number and each judgement."""

from __future__ import annotations

import pandas as pd
import pytest

from headscope import words
from headscope.policy.presets import CONTROLS


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(0.19987, "A fifth"), (0.5, "Half"), (0.3333, "A third"), (0.1, "A tenth"), (0.23, "23 %"), (0.2051, "21 %")],
)
def test_simple_fractions_are_said_as_such(ratio: float, said: str) -> None:
    assert words.fraction(ratio) == said


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
    assert words.size(nbytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.53, "0.5 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (93, "1 min 33 s"), (7260, "2 h 1 min")]
)
def test_durations_are_said_in_their_own_unit(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("swapped", "random_heads", "low", "said"),
    [
        (3.0, 1.0, 0.5, "SSD's classes matter here: it loses 0.3000 nats a token, 1.0000 with random classes and 3.0000 with"),
        (0.31, 0.9, -0.01, "SSD's classes do not show here: it does as well"),
    ],
)
def test_controls_say_whether_the_classes_matter(swapped: float, random_heads: float, low: float, said: str) -> None:
    rows = [("ssd", 0.3, None), ("random_heads", random_heads, 0.5), ("swapped", swapped, low)]
    table = pd.DataFrame(rows, columns=["method", "replay_kl", "control_low"])
    assert words.classes_verdict(table).startswith(said)
    assert words.classes_verdict(table[table["method"] != "ssd"]) == ""


def methods(searched: float, **others: float) -> pd.DataFrame:
    rows = [("full", 0.0), ("searched", searched), *others.items()]
    return pd.DataFrame(rows, columns=["method", "replay_kl"])


def test_controls_are_no_presets() -> None:
    assert set(words._CONTROLS) == set(CONTROLS)  # written out there, because words come before policies
    table = methods(0.2, h2o=0.3, swapped=0.01, random_heads=0.02)
    assert words.wins(table)
    assert "h2o" in words.verdict(table)
    assert words.best_preset(methods(0.2, swapped=0.01)) is None
    assert words.wins(methods(0.2, swapped=0.01)) is None


@pytest.mark.parametrize(("searched", "won"), [(0.29, True), (0.3, False), (0.31, False)])
def test_as_good_as_the_best_preset_is_no_win(searched: float, won: bool) -> None:
    table = methods(searched, h2o=0.3, ssd=0.5)
    assert words.wins(table) is won
    assert ("does not win" in words.verdict(table)) is not won
    assert "noise" not in words.verdict(table)


@pytest.mark.parametrize("low", [-0.01, 0.005])
def test_a_difference_is_noise_where_its_interval_holds_nothing(low: float) -> None:
    table = methods(0.29, h2o=0.3).assign(difference_low=low, difference_high=0.03)
    assert ("noise" in words.verdict(table)) is (low < 0)


def test_what_was_not_compared_is_not_judged() -> None:
    assert "dry run" in words.verdict(methods(0.2, h2o=0.3), quick=True)
    assert "nothing to compare" in words.verdict(None)
    assert "nothing to compare" in words.verdict(pd.DataFrame({"method": ["full"], "replay_kl": [0.0]}))
    assert "No preset" in words.verdict(methods(0.2))


@pytest.mark.parametrize(("needed", "said"), [(None, "trace more"), (1, "From 1 prompt on"), (4, "From 4 prompts on")])
def test_prompts_are_counted(needed: int | None, said: str) -> None:
    assert said in words.prompts_needed(needed, 8)
