"""The table by gradients: near exact losses on a trained model, exact where the change is small, and checked in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from headscope.errors import DataError
from headscope.models.janus import JanusModel
from headscope.pipeline import default_prompts
from headscope.runtime import generate
from headscope.tuning import Replay, default_options, sensitivity_table
from headscope.tuning.measure import table as tables
from headscope.tuning.measure.fisher import fisher_table, sampled_gradients
from headscope.tuning.measure.head_outputs import HeadOutputs
from headscope.tuning.measure.joint import measure_products
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.single_head import SingleHeadLoss


@pytest.fixture(scope="module")
def replay(stickers: JanusModel) -> Replay:
    return Replay(stickers, generate(stickers, default_prompts("stickers")[:2], 0), by_stream=False)


def test_estimates_are_in_the_order_of_exact_losses_and_a_little_lower(replay: Replay) -> None:
    options = default_options(replay.geometry)[:3]
    table = fisher_table(replay, options, 4, anchor=1).set_index(["layer", "kv_head", "window", "heavy"])["loss"]
    exact, alone = [], SingleHeadLoss(replay, 4, 1)
    cells = [(layer, head, option) for option in options for layer, head in ((0, 1), (2, 5), (4, 0), (5, 3), (7, 7))]
    for layer, head, option in cells:
        exact.append(alone.loss(layer, head, option))
    found = [table[layer, head, option.window, option.heavy] for layer, head, option in cells]
    assert spearmanr(exact, found).statistic > 0.9
    assert 0.5 < np.median(np.array(found) / np.maximum(exact, 1e-9)) < 1.5


def test_the_same_seed_gives_the_same_table_and_batches_change_little(tiny: JanusModel) -> None:
    samples = generate(tiny, ["red apple", "dog", "a blue car"], 0)
    whole, parts = (Replay(tiny, samples, by_stream=False, batch_size=size) for size in (3, 1))
    options = [Option(1), Option(2, 3)]
    first, again = (fisher_table(whole, options, 4, seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["loss"].equals(fisher_table(whole, options, 4, seed=2)["loss"])
    assert len(fisher_table(parts, options, 4)) == len(first) == 2 * 2 * 2


def test_a_stopped_table_goes_on_after_its_last_batch(
    tiny: JanusModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog", "a blue car"], 0), by_stream=False, batch_size=1)
    options, part, plain = [Option(1), Option(2, 3)], tmp_path / "part.json", HeadOutputs.under
    whole = fisher_table(replay, options, 4)

    def watched(outputs: HeadOutputs, number: int, option: Option) -> list[torch.Tensor]:
        if (number, option) == stop:
            raise KeyboardInterrupt
        seen.append(number)
        return plain(outputs, number, option)

    seen: list[int] = []
    stop: tuple[int, Option] | None = (2, options[1])
    monkeypatch.setattr(HeadOutputs, "under", watched)
    with pytest.raises(KeyboardInterrupt):
        fisher_table(replay, options, 4, part=part)
    assert seen == [0, 0, 1, 1, 2]
    seen, stop = [], None
    pd.testing.assert_frame_equal(fisher_table(replay, options, 4, part=part), whole)
    assert seen == [2, 2]
    assert not part.exists()
    part.write_text('{"identity": 1')  # what can't be read, or is of other options, is begun anew
    pd.testing.assert_frame_equal(fisher_table(replay, options, 4, part=part), whole)


def test_the_joint_loss_of_one_head_is_its_own_and_of_all_a_slow_sum(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)
    options = [Option(1), Option(2, 3), Option(0, 0, 1.0, 4)]
    products, table = measure_products(replay, options, 4, samples=2), fisher_table(replay, options, 4, samples=2)
    layers, heads, everything = *products.values.shape[1:3], len(options)
    losses = table["loss"].to_numpy().reshape(len(options), layers, heads).transpose(1, 2, 0)
    np.testing.assert_allclose(products.losses(), losses, rtol=2e-3, atol=1e-9)
    alone = np.full((layers, heads), everything)
    assert products.joint(alone) == 0
    alone[1, 0] = 1
    assert products.joint(alone) == pytest.approx(losses[1, 0, 1], rel=2e-3)
    choice = np.array([[0, 2], [1, everything]])
    picked = [products.values[0, 0, 0], products.values[2, 0, 1], products.values[1, 1, 0]]
    together = sum(one.astype(np.float64) for one in picked)
    assert products.joint(choice) == pytest.approx(float((together**2).mean() / 2), rel=1e-6)
    with pytest.raises(DataError, match=r"take 1,440 bytes, 100 are allowed"):
        measure_products(replay, options, 4, samples=2, room=100)


def test_gradients_have_a_place_for_every_stream_image_position_and_head(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)
    gradients = sampled_gradients(replay, 0, 1, 0)
    assert [tuple(layer.shape) for layer in gradients] == [(1, 2, 2, 15, 32)] * 2
    assert all(bool(torch.isfinite(layer).all()) for layer in gradients)
    assert float(gradients[1][0, :, :, -1].abs().max()) > 0  # the last query speaks of the last token


def test_a_head_that_keeps_everything_loses_nothing(tiny: JanusModel) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)
    table = fisher_table(replay, [Option(15), Option(0)], 4)
    assert table.loc[table["window"] == 15, "loss"].max() < 1e-10
    assert table.loc[table["window"] == 0, "loss"].min() > 1e-8


def test_a_table_is_kept_checked_and_read_again(tiny: JanusModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DISAGREES", 30.0)  # heads of random weights lose more than small changes do
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)
    told: list[str] = []
    made = sensitivity_table(replay, "fisher", None, tmp_path / "t.parquet", lambda task, done, total: told.append(task))
    assert "8 cells measured exactly" in made.sentence()
    assert (tmp_path / "t-fisher.parquet").is_file()
    told.clear()
    again = sensitivity_table(replay, "fisher", None, tmp_path / "t.parquet", lambda task, done, total: told.append(task))
    pd.testing.assert_frame_equal(again.losses.reset_index(drop=True), made.losses, check_dtype=False)
    assert "every head by gradients" not in told


def test_the_exact_table_takes_its_place_where_they_disagree(
    tiny: JanusModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)
    plain = fisher_table

    def far_off(*given: object, **named: object) -> pd.DataFrame:
        found = plain(*given, **named)  # type: ignore[arg-type]
        attrs = dict(found.attrs)
        found["loss"] *= 100
        found.attrs |= attrs
        return found

    monkeypatch.setattr(tables, "fisher_table", far_off)
    made = sensitivity_table(replay, "fisher", None, tmp_path / "t.parquet")
    assert made.kind == "heads"
    assert "as one by gradients was" in made.sentence()


def test_a_decoder_built_otherwise_is_refused(tiny: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(tiny, generate(tiny, ["red apple", "dog"], 0), by_stream=False)
    monkeypatch.setattr(HeadOutputs, "can", False)
    with pytest.raises(DataError, match="take another kind of table"):
        sensitivity_table(replay, "fisher")
