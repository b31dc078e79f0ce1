"""How far a stage of training is: by its steps, by the seconds it may take, or by both."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from headscope.recipe.plan import Plan

MARGIN = 0.95  # of the seconds are planned for steps; checkpoints and test losses take the rest
EVERY = 50  # steps from one row of the log to the next
LEAST = 5.0  # seconds between two rows where seconds are limited


@dataclass
class Course:
    """A stage ends after its steps, or when its seconds are over.

    Images are a function of step and steps alone, so they do not depend on how fast a machine is; the learning rate follows
    `done`, so that it has fallen to zero by the end of the seconds too.

    Worked example: 100 steps in 50 seconds. After 40 steps in 30 seconds `done` is .6, by the seconds; after 80 steps in 30
    seconds it is .8.

    Attributes:
        steps: how many; None until `plan` was told the speed.
        seconds: that it may take.
        step: how many are behind.
        spent: seconds of the runs before a stop.
        least: steps that are made however long they take.
    """

    steps: int | None
    seconds: float = math.inf
    step: int = 0
    spent: float = 0.0
    least: float = 0
    began: float = field(default_factory=lambda: time.monotonic())
    told: float = field(default_factory=lambda: time.monotonic())  # when the last row was due

    @classmethod
    def of(cls, plan: Plan, steps: int) -> Course:
        """A stage of `steps`, or of the plan's seconds."""
        if plan.seconds is None:
            return cls(steps)
        return cls(steps if plan.images else None, plan.seconds)

    @property
    def elapsed(self) -> float:
        """Seconds, those before a stop included."""
        return self.spent + time.monotonic() - self.began

    @property
    def done(self) -> float:
        """Share of the stage that is behind, 0..1."""
        by_steps = self.step / self.steps if self.steps else 0.0
        return min(1.0, max(by_steps, self.elapsed / self.seconds))

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        if self.steps is None:
            return False
        return self.step >= self.steps or (self.step >= self.least and self.elapsed >= self.seconds)

    def plan(self, seconds_a_step: float) -> None:
        """Choose the number of steps by their measured speed: as many as fit, and at least as many again as were measured."""
        fit = (self.seconds - self.elapsed) * MARGIN / seconds_a_step
        self.least = 2 * self.step
        self.steps = max(2 * self.step, self.step + int(fit))

    def ahead(self) -> Iterator[tuple[int, int | None]]:
        """What is to be composed: (step, steps), steps as they are known when it is asked for."""
        for step in () if self.over else count(self.step):
            if self.steps is not None and step >= self.steps:
                return
            yield step, self.steps

    def due(self, step: int) -> bool:
        """Whether a row of the log is due after `step` steps, beside that of the last."""
        if step % EVERY or (self.seconds < math.inf and time.monotonic() - self.told < LEAST):
            return False
        self.told = time.monotonic()
        return True

    def facts(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        kept = {"step": self.step, "steps": self.steps, "seconds": self.seconds, "spent": self.elapsed, "least": self.least}
        return {name: str(value) for name, value in kept.items() if value is not None}

    def go_on(self, facts: Mapping[str, str]) -> None:
        """Continue where a checkpoint was written, if there is one; a limit of seconds is that of the run that began."""
        if not facts:
            return
        self.step = int(facts["step"])
        if self.seconds < math.inf and "seconds" in facts:
            self.seconds, self.spent, self.least = (float(facts[name]) for name in ("seconds", "spent", "least"))
            self.steps = int(facts["steps"]) if "steps" in facts else self.steps
