"""How fast a stage trains: images a second of the loader and of a step, so that one sees which is the limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from headscope.recipe.bf16 import Compiled
from headscope.recipe.course import Course
from headscope.recipe.feed import Feed


class Pace:
    """Clocks of one stage, since `begin` was called last.

    A GPU's steps are timed by its own events: what the processor does meanwhile, and waiting for images, is not in them.
    """

    def __init__(self, feed: Feed, images: int, device: str) -> None:
        self._feed, self._images, self._cuda = feed, images, device.startswith("cuda")
        self.begin()

    def begin(self) -> None:
        """Start the clocks again."""
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._stepping = 0.0
        self._before = (self._feed.batches, self._feed.composing, self._feed.waited, time.perf_counter())

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time what is done inside: one step."""
        if self._cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._marks.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._stepping += time.perf_counter() - began

    def _since(self) -> tuple[int, float, float, float]:
        """Batches, and seconds of composing, of waiting and in all."""
        now = (self._feed.batches, self._feed.composing, self._feed.waited, time.perf_counter())
        batches, composing, waited, seconds = (new - old for new, old in zip(now, self._before, strict=True))
        return int(batches), composing, waited, seconds

    def seconds_of_steps(self) -> float:
        """Seconds of all steps; waits for the GPU."""
        if not self._marks:
            return self._stepping
        self._marks[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in self._marks) / 1000

    def seconds_a_step(self) -> float:
        """What a step will take in the long run: the loader's time where that is the longer one."""
        batches, composing, _, _ = self._since()
        stepping, workers = self.seconds_of_steps(), self._feed.workers
        seconds = max(stepping, composing / workers) if workers else stepping + composing
        return seconds / max(1, batches)

    def row(self) -> dict[str, float]:
        """Images a second that the loader can compose and that steps can take, and the share of time spent waiting."""
        batches, composing, waited, seconds = self._since()
        images = batches * self._images
        found = {
            "loader_images_a_second": images * max(1, self._feed.workers or 1) / max(composing, 1e-9),
            "step_images_a_second": images / max(self.seconds_of_steps(), 1e-9),
            "waited": waited / max(seconds, 1e-9),
        }
        self.begin()
        return found


def find_speed(
    course: Course,
    pace: Pace,
    steps: int,
    mean: float = 1.0,
    faster: Compiled | None = None,
    tell: Callable[..., None] = lambda **facts: None,
) -> Iterator[int]:
    """Advanced once after every step, plans how many steps there will be from the speed of the first.

    Args:
        course: to plan.
        pace: its clocks.
        steps: that warm up, and then as many that are timed.
        mean: seconds of the stage's mean step, as a multiple of the first ones'.
        faster: what may be faster, if it works; kept if it is.
        tell: told what was measured.
    """
    yield from range(steps)
    pace.begin()
    yield from range(steps)
    best, planned = pace.seconds_of_steps() / steps, pace.seconds_a_step()
    facts: dict[str, float | str] = {"plain_step_seconds": best}
    if faster is not None:
        if faster.begin():
            yield from range(steps)
            pace.begin()
            yield from range(steps)
            facts["compiled_step_seconds"] = compiled = pace.seconds_of_steps() / steps
            if compiled < best:
                planned = pace.seconds_a_step()
            else:
                faster.end()
        facts |= {"compiling_seconds": faster.seconds, "compiling_fault": faster.fault}
    course.plan(planned * mean)
    tell(**facts, step_seconds=planned, steps=course.steps)
    pace.begin()


def turn_on(faster: Compiled) -> Iterator[int]:
    """Advanced once after every step, compiles after the first: a run that goes on had found it to be faster."""
    faster.begin()
    yield 0
