"""What a head needs: equal bytes, hand-made losses with hand-computed answers, and the real table behind it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, strategies as st

from headscope.errors import BudgetError, DataError
from headscope.geometry import Geometry
from headscope.intervals import rank_correlation
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, ModelShape
from headscope.runtime import generate
from headscope.tuning import Replay, ablate_heads, equal_options, measure_sensitivity
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.single_head import alone_policy

SHAPE = ModelShape("toy", 3, 4, 4, 8, Geometry(6, 6), "a", "w")
OPTIONS = {"window": Option(9), "heavy": Option(0, 8), "both": Option(4, 4)}


@given(
    keep=st.floats(0.35, 1.0),
    stride=st.sampled_from([1, 3, 6]),
    prefix=st.integers(0, 9),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_each_choice_is_the_largest_within_the_head_s_share(keep: float, stride: int, prefix: int, dtype: str) -> None:
    try:
        options = equal_options(keep, CacheSpec(SHAPE, prefix, dtype=dtype, streams=1), stride)
    except BudgetError:
        assume(False)
    share = keep * CacheSpec(SHAPE, prefix, streams=1, dtype=dtype).full_bytes / 12

    def cost(window: int, heavy: int) -> int:
        return int(CacheSpec(SHAPE, prefix, dtype=dtype).head_bytes(window, heavy, 0, stride))

    window, heavy, both = (options[kind] for kind in ("window", "heavy", "both"))
    assert (window.heavy, heavy.window) == (0, 0)
    assert 0 <= both.heavy - both.window <= 1
    for option in options.values():
        assert cost(option.window, option.heavy) <= share
    assert window.window == 35 or cost(window.window + 1, 0) > share
    assert heavy.heavy == 35 or cost(0, heavy.heavy + 1) > share


def test_a_share_without_room_for_a_heavy_token_is_refused() -> None:
    with pytest.raises(BudgetError, match="holds no heavy token beside a buffer of 6 tokens"):
        equal_options("20%", CacheSpec(SHAPE, 2, streams=1), 6)


def table(losses: list[tuple[float, float, float]]) -> pd.DataFrame:
    rows = [
        (0, head, option.window, option.heavy, 1.0, 1, loss)
        for head, three in enumerate(losses)
        for option, loss in zip(OPTIONS.values(), three, strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "kv_head", "window", "heavy", "decay", "stride", "loss"])


def heads(scores: list[float]) -> pd.DataFrame:
    kinds = ["semantic" if score > 0.5 else "spatial" for score in scores]
    return pd.DataFrame({"layer": 0, "kv_head": range(len(scores)), "class": kinds, "semantic_score": scores})


def test_losses_made_by_hand_give_the_answers_worked_out_by_hand() -> None:
    found = ablate_heads(
        table([(0.0, 0.4, 0.1), (0.1, 0.3, 0.05), (0.3, 0.1, 0.2), (0.0, 0.0, 0.0)]),
        heads([0.1, 0.2, 0.9, 0.8]),
        OPTIONS,
        "20%",
    )
    assert found.table["heavy_preference"].tolist()[:3] == pytest.approx([-1.0, -0.5, 0.5])
    assert np.isnan(found.table["heavy_preference"].iloc[3])  # it loses nothing either way, so it says nothing
    assert found.table["best"].tolist()[:3] == ["window", "both", "heavy"]
    assert found.correlation == pytest.approx(1.0)
    assert found.by_class == pytest.approx(0.0 + 0.1 + 0.1)
    assert found.by_opposite == pytest.approx(0.4 + 0.3 + 0.3)
    assert found.by_best == pytest.approx(0.2)
    assert found.right == 1.0


def test_a_score_that_says_the_opposite_is_told_so() -> None:
    losses = [(0.01 * k, 0.3 - 0.01 * k, 0.1) for k in range(20)]
    found = ablate_heads(table(losses), heads([1 - k / 20 for k in range(20)]), OPTIONS, "20%")
    assert found.correlation == pytest.approx(-1.0)
    assert "predicts the opposite" in found.sentence()


def test_a_score_without_a_relation_is_told_so() -> None:
    rng = np.random.default_rng(0)
    losses = [tuple(rng.random(3)) for _ in range(20)]
    found = ablate_heads(table(losses), heads(list(rng.random(20))), OPTIONS, "20%")
    assert found.low < 0 < found.high
    assert "does not predict" in found.sentence()


def test_a_missing_head_is_refused_with_what_to_do() -> None:
    whole = table([(0.1, 0.2, 0.3), (0.1, 0.2, 0.3)])
    with pytest.raises(DataError, match="lacks 1 of 2 heads at 20%"):
        ablate_heads(whole.iloc[:-1], heads([0.1, 0.9]), OPTIONS, "20%")


def test_an_interval_holds_the_correlation_and_shrinks_with_more_pairs() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for count in (12, 200):
        x = rng.random(count)
        middle, low, high = rank_correlation(x, x + 0.5 * rng.random(count))
        assert low <= middle <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert all(np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])))


def test_the_table_is_what_replay_measures_head_by_head(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "a blue car"], 3))
    options = equal_options("60%", CacheSpec(tiny.shape, replay.prefix, streams=1), 1)
    losses = measure_sensitivity(replay, list(options.values()), stride=1, negligible=0.0)
    for kind in ("window", "heavy", "both"):
        mine = losses[(losses["window"] == options[kind].window) & (losses["heavy"] == options[kind].heavy)]
        for layer, head in ((0, 1), (1, 0)):
            slow = replay.measure(alone_policy(replay, layer, head, options[kind], 1)).kl
            fast = float(mine.loc[(mine["layer"] == layer) & (mine["kv_head"] == head), "loss"].iloc[0])
            assert fast == pytest.approx(slow, rel=1e-3, abs=1e-7)
    assert losses["loss"].max() > 1e-4
