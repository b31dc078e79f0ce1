"""The classifier finds two kinds of heads, orders them, and survives odd data."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.heads import HeadClassifier, Heads, classify
from headscope.heads.features import FEATURES, features, odd_heads
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing import TraceDataset, trace


def two_kinds(seed: int, spatial: int = 30, semantic: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    near = np.array([0.2, 0.2, 1.5, 0.05, 0.1, 0.3, 0.1, 0.4, 0.4, 0.3])
    far = np.array([0.9, 0.8, 6.0, 0.4, 0.3, 0.7, 0.4, 0.02, 0.02, 0.02])
    rows = [near + 0.04 * rng.standard_normal(10) for _ in range(spatial)]
    rows += [far + 0.04 * rng.standard_normal(10) for _ in range(semantic)]
    return np.array(rows), np.array(["spatial"] * spatial + ["semantic"] * semantic)


@pytest.mark.parametrize("seed", range(4))
def test_two_kinds_of_heads_are_told_apart(seed: int) -> None:
    values, truth = two_kinds(seed)
    classifier = HeadClassifier(random_state=seed).fit(values)
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
    first, second = (HeadClassifier(random_state=3).fit(values) for _ in range(2))
    assert np.array_equal(first.score_semantic(values), second.score_semantic(values))


def test_constant_features_and_few_heads_do_not_fail() -> None:
    values = np.ones((4, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = HeadClassifier().fit(values).score_semantic(values)
    assert scores == pytest.approx([0.5] * 4)
    two = np.random.default_rng(0).random((2, 9))
    assert np.isfinite(HeadClassifier().fit(two).score_semantic(two)).all()


def records(values: np.ndarray, images: int = 2) -> pd.DataFrame:
    """A trace's table: one layer, one query head a row of `values` [heads, features], the same in every image."""
    rows = [
        {"sample": sample, "stream": "conditional", "layer": 0, "head": head, "band": -1}
        | dict(zip(FEATURES, row, strict=True))
        for sample in range(images)
        for head, row in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_numbers_that_are_not_finite_are_left_out_of_the_means() -> None:
    table = records(np.arange(40, dtype=float).reshape(4, 10))
    table.loc[0, "entropy"] = np.nan  # head 0 in image 0: image 1 still knows
    table.loc[table["head"] == 3, "row_above"] = np.inf  # nobody knows: the mean of heads 0, 1 and 2
    made = features(table, 4, 4).set_index("kv_head")
    assert made.loc[0, "entropy"] == 5.0
    assert made.loc[3, "row_above"] == pytest.approx((7 + 17 + 27) / 3)
    assert odd_heads(table) == 2


def test_a_trace_with_nothing_but_nan_still_gives_scores() -> None:
    made = features(records(np.full((4, 10), np.nan)), 4, 2)
    scores = HeadClassifier().fit(made[list(FEATURES)].to_numpy()).score_semantic(made[list(FEATURES)].to_numpy())
    assert scores == pytest.approx([0.5, 0.5])


def test_parameters_stay_as_given() -> None:
    classifier = HeadClassifier(random_state=7, n_init=3)
    classifier.fit(two_kinds(0)[0])
    expected = {"random_state": 7, "n_init": 3, "method": "mixture", "n_clusters": 2, "threshold": 0.2}
    assert classifier.get_params() == expected


@pytest.mark.parametrize("method", ["mixture", "kmeans", "threshold"])
def test_every_method_tells_clear_kinds_apart(method: str) -> None:
    values, truth = two_kinds(3)
    classifier = HeadClassifier(method=method, threshold=0.5).fit(values)
    assert (classifier.predict(values) == truth).all()
    proba = classifier.predict_proba(values)
    assert proba.sum(1) == pytest.approx(np.ones(42))
    scores = classifier.score_semantic(values)
    assert scores[truth == "semantic"].min() > 0.5 > scores[truth == "spatial"].max()


def test_the_threshold_rule_is_the_papers() -> None:
    values = np.random.default_rng(0).random((40, 9))
    found = HeadClassifier(method="threshold", threshold=0.3).fit(values).predict(values)
    assert ((found == "semantic") == (values[:, 0] > 0.3)).all()


def test_bic_says_how_many_kinds_the_data_support() -> None:
    values, _ = two_kinds(1, 60, 60)
    two = HeadClassifier(n_clusters="bic").fit(values)
    assert two.supported_ == 2
    assert two.verdict_.startswith("The data support two kinds of heads")
    one = HeadClassifier().fit(np.random.default_rng(2).standard_normal((200, 9)))
    assert one.supported_ == 1
    assert one.verdict_.startswith("The data do not support two kinds of heads")
    third = np.concatenate([values, two_kinds(5, 60, 0)[0] + 0.6])
    three = HeadClassifier(n_clusters="bic").fit(third)
    assert three.supported_ == 3
    assert len(three.centres_) == 3
    assert "two classes are a choice" in three.verdict_


def test_clusters_are_named_by_their_centroids() -> None:
    values, truth = two_kinds(2)
    for seed in range(5):
        assert (HeadClassifier(random_state=seed, method="kmeans").fit(values).predict(values) == truth).all()
        assert (HeadClassifier(random_state=seed).fit(values[::-1]).predict(values) == truth).all()


@pytest.mark.parametrize("wrong", [{"method": "dbscan"}, {"n_clusters": 1}, {"n_clusters": "three"}, {"n_clusters": 99}])
def test_unknown_methods_and_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"unknown; known are|expected bic, or a number"):
        HeadClassifier(**wrong).fit(two_kinds(0)[0])


def test_a_single_head_is_classified_by_the_threshold() -> None:
    with pytest.raises(DataError, match="at least two heads"):
        HeadClassifier().fit(np.full((1, 9), 0.9))
    for share, expected in ((0.9, "semantic"), (0.1, "spatial")):
        judge = HeadClassifier(method="threshold").fit(np.full((1, 9), share))
        assert judge.predict(np.full((1, 9), share)) == [expected]
        assert judge.score_semantic(np.full((1, 9), share)) == [0.5]
        assert judge.verdict_.startswith("There is one head")


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
    back = Heads.load(heads.save(tmp_path / "heads.safetensors"))
    assert back.table.equals(heads.table)
    assert back.meta == heads.meta
    (tmp_path / "heads.safetensors").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a file of head classes"):
        Heads.load(tmp_path / "heads.safetensors")


def test_a_trace_with_odd_numbers_is_classified_with_a_warning(
    tiny: JanusModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = trace(tiny, generate(tiny, ["red apple", "dog"], 0), tmp_path / "trace")
    table = dataset.heads()
    table.loc[(table["layer"] == 0) & (table["head"] < 2), "entropy"] = np.nan
    monkeypatch.setattr(dataset, "heads", lambda: table)
    with pytest.warns(UserWarning, match="2 heads have statistics that are no numbers"):
        heads = classify(dataset, tiny.shape, resamples=2)
    assert heads.table.notna().all().all()
    assert heads.meta["weights"] == tiny.shape.weights
    assert heads.meta["architecture"] == tiny.shape.architecture
    monkeypatch.setattr(dataset, "heads", lambda: table[table["layer"] == 0])
    with pytest.warns(UserWarning, match="no numbers"), pytest.raises(DataError, match="has 2 KV heads, tiny 2 x 2"):
        classify(dataset, tiny.shape, resamples=2)


def test_a_trace_of_other_weights_is_refused(tiny: JanusModel, tmp_path: Path) -> None:
    dataset = trace(tiny, generate(tiny, ["red apple"], 0), tmp_path / "trace")
    with pytest.raises(DataError, match="other weights than tiny"):
        classify(dataset, replace(tiny.shape, weights="0" * 64))


def test_kv_heads_are_means_of_their_query_heads(tiny: JanusModel, tmp_path: Path) -> None:
    samples = generate(tiny, ["red apple", "dog"], 0)
    dataset: TraceDataset = trace(tiny, samples, tmp_path / "trace")
    table = classify(dataset, tiny.shape, resamples=1).table.set_index(["layer", "kv_head"])
    records = dataset.heads()
    by_hand = records[(records["layer"] == 1) & records["head"].isin([2, 3])]["prefix_mass"].astype(float).mean()
    assert table.loc[(1, 1), "prefix_mass"] == pytest.approx(by_hand)
