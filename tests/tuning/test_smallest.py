"""The smallest cache below a loss: against trying every rung."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from headscope.errors import BudgetError
from headscope.tuning.smallest import RUNG, Step, find_smallest


@given(st.floats(1e-3, 2.0), st.floats(0.05, 0.5), st.floats(0.5, 6.0), st.floats(0.3, 1.0))
def test_the_smallest_good_share_is_found(max_loss: float, least: float, steep: float, gain: float) -> None:
    def loss(share: float) -> float:
        return math.exp(-steep * share * 3) if share < 1 else 0.0

    asked: list[Step] = []
    found = find_smallest(max_loss, least, loss, lambda share: (gain * loss(share), 0.9 * gain * loss(share)), asked.append)
    rungs = [1.0]
    while rungs[-1] / RUNG > least:
        rungs.append(rungs[-1] / RUNG)
    good = [share for share in rungs if gain * loss(share) <= max_loss]
    assert found.keep == pytest.approx(min(good))
    assert tuple(asked) == found.steps
    assert [step.good for step in found.steps].count(False) <= 1  # it ends at the first that is no good


def test_unseen_images_decide_too() -> None:
    found = find_smallest(0.1, 0.2, lambda share: 0.05, lambda share: (0.05, 0.0 if share > 0.55 else 0.2))
    assert found.keep / RUNG <= 0.55 < found.keep
    assert not found.steps[0].good
    assert found.steps[-1].good


def test_a_loss_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(BudgetError, match="max_loss 0: expected more than 0"):
        find_smallest(0.0, 0.2, lambda share: 1.0, lambda share: (1.0, 1.0))
    with pytest.raises(BudgetError, match="not even the whole cache"):
        find_smallest(0.1, 0.2, lambda share: 1.0, lambda share: (1.0, 1.0))
