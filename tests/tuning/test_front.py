"""The front: nothing on it is beaten in both, nothing asked for exceeds its bytes, and it goes on after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.policy import CacheSpec
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.measurement import ReplayResult, Watch
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.spaces import TableSpace, neutral
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.study.pareto import Front, search_the_front
from headscope.tuning.study.storage import StudyStore
from tests.tuning.landscape import LIMIT, PREFIX, SCORES, SHAPE, Landscape, table

SHARES = {"80%": 0.8, "50%": 0.5, "35%": 0.35}
PLAIN = CacheSpec(SHAPE, PREFIX).full_bytes


class Weighed(Landscape):
    """Also says what a policy takes here, in float32, as a replay does; the limit counts two bytes a number."""

    def measure(self, policy, watch: Watch | None = None) -> ReplayResult:  # type: ignore[no-untyped-def]
        here = CacheSpec(policy.shape, policy.prefix, dtype="float32")
        return replace(super().measure(policy, watch), cache_bytes=here.bytes_of(policy))


def space_at(share: float) -> TableSpace:
    limit = LIMIT.at(share)
    classes = ClassSpace(limit, SCORES, fitting_strides(LIMIT.at(0.35)))
    return TableSpace(limit, SCORES, classes.strides, table(), classes.build(neutral(classes)))


def found(trials: int, storage: Path | None = None, land: Weighed | None = None, seed: int = 1) -> Front:
    store = StudyStore.open(storage, identity={"seed": seed})
    return search_the_front(land or Weighed(), space_at, SHARES, {}, SearchConfig(trials=trials, seed=seed), store)


def test_nothing_on_the_front_is_beaten_and_everything_else_is() -> None:
    points = found(24).points
    assert len(points) == 27
    for number, point in points.iterrows():
        others = points.drop(index=number)
        better = (others["kl"] <= point["kl"]) & (others["cache_bytes"] <= point["cache_bytes"])
        strictly = better & ((others["kl"] < point["kl"]) | (others["cache_bytes"] < point["cache_bytes"]))
        if point["on_front"]:
            assert not strictly.any()
        else:
            assert better.any()


def test_what_is_chosen_fits_and_is_the_best_that_does() -> None:
    front = found(24)
    for share in SHARES.values():
        number = front.under(int(share * PLAIN))
        assert number is not None
        assert (
            CacheSpec(front.policies[number].shape, front.policies[number].prefix).bytes_of(front.policies[number])
            <= share * PLAIN
        )
        fits = front.points[front.points["cache_bytes"] <= share * PLAIN]
        assert front.points.loc[number, "kl"] == fits["kl"].min()
    assert front.under(10) is None


def test_a_front_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = found(12, tmp_path / "whole.db")
    found(5, tmp_path / "parts.db")
    again = Weighed()
    rest = found(12, tmp_path / "parts.db", again)
    assert len(again.measured) == 7
    pd.testing.assert_frame_equal(rest.points, whole.points)
    with pytest.raises(DataError, match="was made for another seed"):
        found(12, tmp_path / "parts.db", seed=2)
