"""The dual question: the smallest cache that loses less than so much on prompts that no search saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headscope.errors import BudgetError

# Shares of the plain cache that are tried, each so many times the next smaller one.
RUNG = 1.06


@dataclass(frozen=True)
class Step:
    """One share that was searched.

    Attributes:
        keep: share of the plain cache.
        calibration: loss on the calibration images, nats a token.
        unseen: loss on images that no search saw, nats a token.
        good: whether both are allowed.
    """

    keep: float
    calibration: float
    unseen: float
    good: bool


@dataclass(frozen=True)
class Smallest:
    """What `smallest` found.

    Attributes:
        keep: the smallest share of the plain cache that is good.
        steps: what was searched, in order.
    """

    keep: float
    steps: tuple[Step, ...]


def find_smallest(
    max_loss: float,
    least: float,
    solved: Callable[[float], float],
    searched: Callable[[float], tuple[float, float]],
    told: Callable[[Step], None] | None = None,
) -> Smallest:
    """Find the smallest share of the cache whose loss stays below `max_loss`.

    First the solver's answers alone are halved over a ladder of shares (RUNG apart): cheap, and an upper bound. From
    there a full search is made at each smaller share, until one is no good; or, if the first is none, at larger ones.

    Args:
        max_loss: nats a token.
        least: the smallest share that anything fits into.
        solved: share -> loss of the solver's answer on the calibration images (infinite where nothing fits).
        searched: share -> loss of the searched policy on the calibration images and on unseen ones.
        told: each searched share.

    Raises:
        BudgetError: not even the whole cache loses so little.
    """
    if max_loss <= 0:
        raise BudgetError(f"max_loss {max_loss:g}: expected more than 0 nats a token; only the full cache loses nothing.")
    rungs = [1.0]
    while rungs[-1] / RUNG > least:
        rungs.append(rungs[-1] / RUNG)
    good, bad = 0, len(rungs)  # the whole cache is good
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if solved(rungs[middle]) <= max_loss else (good, middle)
    steps: list[Step] = []

    def step(rung: int) -> bool:
        calibration, unseen = searched(rungs[rung])
        steps.append(Step(rungs[rung], calibration, unseen, max(calibration, unseen) <= max_loss))
        if told is not None:
            told(steps[-1])
        return steps[-1].good

    rung = good
    if step(rung):
        while rung + 1 < len(rungs) and step(rung + 1):
            rung += 1
    else:
        while rung > 0 and not step(rung - 1):
            rung -= 1
        rung -= 1
        if rung < 0:
            raise BudgetError(f"max_loss {max_loss:g}: nothing loses so little, not even the whole cache.")
    return Smallest(rungs[rung], tuple(steps))
