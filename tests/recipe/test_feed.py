"""Batches are the same whoever composes them, and a stage ends by its steps or its seconds."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from headscope.recipe.composing import Captioned, Cropped
from headscope.recipe.course import Course
from headscope.recipe.feed import Feed
from headscope.recipe.images import as_bytes, from_bytes
from headscope.recipe.pace import Pace, find_speed
from headscope.recipe.transformer import PREFIX
from tests.recipe.drawings import TINY, tiny_stickers, tiny_tokenizer

STICKERS = tiny_stickers()
TOKENIZER = tiny_tokenizer()


def captioned() -> Captioned:
    return Captioned(TINY, STICKERS, TOKENIZER, ([5, 0], [2]), multiple=PREFIX)


def cropped() -> Cropped:
    return Cropped(TINY, STICKERS, [5, 0, 1], in_turn=False)


@pytest.mark.parametrize("compose", [captioned, cropped])
def test_data_do_not_depend_on_the_number_of_workers(compose: type[Captioned]) -> None:
    """Nor on where a run goes on: the last one begins at the third step."""
    found = {}
    for workers, first in ((0, 0), (1, 0), (2, 0), (2, 2)):
        course = Course(7, step=first)
        found[workers, first] = list(Feed(compose(), course, "cpu", workers))
    here = found[0, 0]
    for other in (found[1, 0], found[2, 0], [*here[:2], *found[2, 2]]):
        for one, same in zip(here, other, strict=True):
            assert one.keys() == same.keys()
            assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(here[0]["pixels"], here[1]["pixels"])


def test_a_worker_hands_over_bytes_of_what_training_would_compose() -> None:
    (here,) = Feed(captioned(), Course(1), "cpu")
    (handed,) = Feed(captioned(), Course(1), "cpu", 1)
    assert torch.equal(handed["pixels"], from_bytes(as_bytes(here["pixels"])))
    assert (handed["pixels"] - here["pixels"]).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(handed["ids"], here["ids"])
    assert here["ids"].shape[1] == PREFIX


def test_drawings_narrow_and_crops_end_at_shares_of_the_steps() -> None:
    crops = cropped()
    assert crops(84, 100)["pixels"].shape[-1] == TINY.pixels // 2
    assert crops(85, 100)["pixels"].shape[-1] == TINY.pixels
    assert crops(85, None)["pixels"].shape[-1] == TINY.pixels // 2
    images = captioned()
    assert torch.equal(images(9, None)["pixels"], images(9, 100)["pixels"])
    assert not torch.equal(images(9, 10)["pixels"], images(9, 100)["pixels"])


def test_a_course_is_done_by_steps_or_by_seconds_whichever_is_further(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    course = Course(100, 50.0, step=40)
    now += 30
    assert course.done == pytest.approx(0.6)
    course.step = 80
    assert course.done == pytest.approx(0.8)
    assert not course.over
    now += 20
    assert (course.done, course.over) == (1.0, True)
    assert list(course.ahead()) == []
    assert list(Course(3, step=1).ahead()) == [(1, 3), (2, 3)]


def test_a_plan_fills_the_seconds_and_makes_as_many_steps_again_as_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    course = Course(None, 100.0, step=20)
    now = 20.0
    assert not course.over
    course.plan(0.5)
    assert course.steps == 20 + int(80 * 0.95 / 0.5)
    slow = Course(None, 100.0, step=20, began=0.0)
    now = 150.0
    slow.plan(3.0)
    assert (slow.steps, slow.over) == (40, False)


def test_a_checkpoint_keeps_how_far_a_limited_course_is() -> None:
    course = Course(90, 60.0, step=30, spent=25.0, least=20)
    later = Course(None, 999.0)
    later.go_on(course.facts())
    assert (later.step, later.steps, later.seconds, later.least) == (30, 90, 60.0, 20)
    assert later.elapsed == pytest.approx(25.0, abs=1.0)
    by_steps = Course(200)
    by_steps.go_on({"step": "30"})
    assert (by_steps.step, by_steps.steps, by_steps.seconds) == (30, 200, math.inf)


def test_the_speed_of_the_first_steps_plans_the_others() -> None:
    def compose(step: int, steps: int | None) -> dict[str, torch.Tensor]:
        return {"pixels": torch.zeros(2, 3, 4, 4)}

    course, told = Course(None, 0.5), {}
    feed = Feed(compose, course, "cpu", 0)
    pace = Pace(feed, 2, "cpu")
    speed = find_speed(course, pace, 3, tell=told.update)
    for _ in feed:
        with pace.step():
            time.sleep(0.005)
        course.step += 1
        next(speed, None)
        if course.over:
            break
    assert 0.004 < told["step_seconds"] < 0.1
    assert told["steps"] == course.steps
    assert course.step > 6
    row = pace.row()
    assert row["loader_images_a_second"] > row["step_images_a_second"] > 0
    assert 0 <= row["waited"] < 1


def test_bytes_are_images_again() -> None:
    images = torch.from_numpy(np.arange(256, dtype=np.uint8))
    assert torch.equal(as_bytes(from_bytes(images)), images)
