"""The classifier finds two kinds of heads, orders them, and survives odd data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headscope.errors import DataError
from headscope.heads import HeadClassifier, Heads, classify
from headscope.heads.features import FEATURES
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing import TraceDataset, trace


def two_kinds(seed: int, spatial: int = 30, semantic: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    near = np.array([0.2, 0.2, 1.5, 0.05, 0.1, 0.3, 0.1, 0.4, 0.3])
    far = np.array([0.9, 0.8, 6.0, 0.4, 0.3, 0.7, 0.4, 0.02, 0.02])
    rows = [near + 0.04 * rng.standard_normal(9) for _ in range(spatial)]
    rows += [far + 0.04 * rng.standard_normal(9) for _ in range(semantic)]
    return np.array(rows), np.array(["spatial"] * spatial + ["semantic"] * semantic)


@pytest.mark.parametrize("seed", range(4))
def test_two_kinds_of_heads_are_told_apart(seed: int) -> None:
    values, truth = two_kinds(seed)
    classifier = HeadClassifier(seed=seed).fit(values)
    assert (classifier.predict(values) == truth).all()
    scores = classifier.score_semantic(values)
    assert scores[truth == "semantic"].min() > 0.5 > scores[truth == "spatial"].max()


def test_the_score_is_graded_where_the_posterior_saturates() -> None:
    values, _ = two_kinds(0)
    classifier = HeadClassifier().fit(values)
    line = np.linspace(values[:30].mean(0), values[30:].mean(0), 9)
    scores = classifier.score_semantic(line)
    assert (np.diff(scores) > 0.02).all()
    assert scores[0] == pytest.approx(0.12, abs=0.02)
    assert scores[-1] == pytest.approx(0.88, abs=0.02)


def test_the_same_seed_gives_the_same_classes() -> None:
    values = np.random.default_rng(1).random((40, 9))
    first, second = (HeadClassifier(seed=3).fit(values) for _ in range(2))
    assert np.array_equal(first.score_semantic(values), second.score_semantic(values))


def test_constant_features_and_few_heads_do_not_fail() -> None:
    values = np.ones((4, 9))
    scores = HeadClassifier().fit(values).score_semantic(values)
    assert np.isfinite(scores).all()
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("values", [np.ones((1, 9)), np.full((4, 9), np.nan)])
def test_data_that_cannot_be_clustered_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected at least two heads"):
        HeadClassifier().fit(values)


def test_classes_of_a_model_come_back_from_a_file(tiny: JanusModel, tmp_path: Path) -> None:
    samples = generate(tiny, ["red apple", "dog", "a blue car"], 0)
    heads = classify(trace(tiny, samples, tmp_path / "trace"), tiny.shape, resamples=3)
    assert list(heads.table.columns) == [
        "layer", "kv_head", "class", "semantic_score", "confidence", "stability", *FEATURES,
    ]  # fmt: skip
    assert heads.scores().shape == (2, 2)
    back = Heads.load(heads.save(tmp_path / "heads.parquet"))
    assert back.table.equals(heads.table)
    assert back.meta == heads.meta
    (tmp_path / "heads.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a file of head classes"):
        Heads.load(tmp_path / "heads.parquet")


def test_kv_heads_are_means_of_their_query_heads(tiny: JanusModel, tmp_path: Path) -> None:
    samples = generate(tiny, ["red apple", "dog"], 0)
    dataset: TraceDataset = trace(tiny, samples, tmp_path / "trace")
    table = classify(dataset, tiny.shape, resamples=1).table.set_index(["layer", "kv_head"])
    records = dataset.heads()
    by_hand = records[(records["layer"] == 1) & records["head"].isin([2, 3])]["prefix_mass"].astype(float).mean()
    assert table.loc[(1, 1), "prefix_mass"] == pytest.approx(by_hand)
