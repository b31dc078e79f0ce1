"""HeadClassifier: clusters that learn the spatial / semantic split."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from headscope.errors import DataError
from headscope.heads.features import FEATURES, features, odd_heads
from headscope.heads.files import SEMANTIC, SPATIAL, Heads
from headscope.policy import ModelShape
from headscope.tracing.dataset import TraceDataset

METHODS = ("mixture", "kmeans", "threshold")
MOST_CLUSTERS = 6  # that BIC may choose from
THRESHOLD = 0.2  # of SSD's score; the paper does not print its own, half of Janus-Pro-1B's published heads lie above this one


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """Spatial or semantic, by clusters over standardised features; an estimator as scikit-learn's.

    The published map of Janus-Pro has no gap (the share of heads above any threshold falls smoothly), so a hard split
    is a choice; beside the class stand a score and a confidence, and `verdict_` says what the data support.

    Args:
        random_state: seed of the starts.
        n_init: how many starts; the likeliest stays.
        method: "mixture", a Gaussian mixture with diagonal covariances; "kmeans"; or "threshold", the paper's rule
            (2510.18716): semantic where the first feature, SSD's score, is above `threshold`.
        n_clusters: how many, or "bic" for the number with the least Bayesian information criterion among 1 .. 6 mixtures.
        threshold: from 0 to 1, for that method alone.

    Attributes:
        mean_: float64 [features], what the standardisation takes away; this and the others are there after `fit`.
        scale_: float64 [features], what it then divides by.
        centres_: float64 [clusters, features], standardised.
        semantic_: bool [clusters], named by their centroids: those whose SSD score is above the middle between the least and
            the greatest.
        axis_: float64 [features], direction from the spatial centres' mean to the semantic ones'.
        middle_: where on `axis_` the middle between the two means lies.
        spread_: how far each mean is from that middle.
        classes_: str [2], the names of the classes in the order of `predict_proba`.
        bic_: float64 [most clusters], of mixtures of 1, 2, ... clusters.
        supported_: the number of clusters with the least `bic_`.
        verdict_: what that says, in a sentence.

    Example:
        >>> classifier = HeadClassifier(random_state=0).fit(table[list(FEATURES)])  # doctest: +SKIP
        >>> classifier.predict(table[list(FEATURES)])  # doctest: +SKIP
    """

    def __init__(
        self,
        random_state: int = 0,
        n_init: int = 10,
        method: str = "mixture",
        n_clusters: int | str = 2,
        threshold: float = THRESHOLD,
    ) -> None:
        self.random_state = random_state
        self.n_init = n_init
        self.method = method
        self.n_clusters = n_clusters
        self.threshold = threshold

    def fit(self, X: Any, y: Any = None) -> HeadClassifier:  # noqa: N803
        """Find the clusters, name them, and ask what the data support.

        Args:
            X: float [heads, features], finite, a row a head, columns in the order of FEATURES, sparsity_1 (SSD's score) first.
            y: not used; scikit-learn's pipelines give it.

        Raises:
            DataError: fewer than two heads (one for the threshold), numbers that are not finite, or an unknown method or number
                of clusters.
        """
        values = np.asarray(X, dtype=np.float64)
        least = 1 if self.method == "threshold" else 2
        if values.ndim != 2 or len(values) < least or not np.isfinite(values).all():
            raise DataError(f"Found {values.shape} features, expected at least two heads and finite numbers: trace again.")
        if self.method not in METHODS:
            raise DataError(f"method {self.method}: unknown; known are {', '.join(METHODS)}.")
        if self.n_clusters != "bic" and not (isinstance(self.n_clusters, int) and 2 <= self.n_clusters <= max(len(values), 2)):
            raise DataError(
                f"n_clusters {self.n_clusters}: expected bic, or a number from 2 to {len(values)}, the number of heads."
            )
        if not 0 <= self.threshold <= 1:
            raise DataError(f"threshold {self.threshold}: expected a number from 0 to 1, the range of SSD's score.")
        self.mean_ = values.mean(0)
        self.scale_ = np.where(values.std(0) > 1e-12, values.std(0), 1.0)
        standard = self._standardised(values)
        clusters = range(1, self._most(len(values)) + 1) if len(values) > 1 else ()
        self.bic_ = np.array([self._mixture(standard, k, 1).bic(standard) for k in clusters])
        self.supported_ = int(self.bic_.argmin()) + 1 if len(self.bic_) else 1
        count = max(self.supported_, 2) if self.n_clusters == "bic" else int(self.n_clusters)
        self.mixture_ = None
        if self.method == "mixture":
            self.mixture_ = self._mixture(standard, count, self.n_init)
            self.centres_ = self.mixture_.means_
        elif self.method == "kmeans":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Number of distinct clusters")
                found = KMeans(count, n_init=self.n_init, random_state=self.random_state).fit(standard)
            self.centres_ = found.cluster_centers_
            self.width_ = max(float(found.inertia_) / standard.size, 1e-9)
        else:
            above = values[:, 0] > self.threshold
            whole = standard.mean(0)
            self.centres_ = np.stack([standard[part].mean(0) if part.any() else whole for part in (~above, above)])
        self._name_clusters()
        self.classes_ = np.array([SPATIAL, SEMANTIC])
        return self

    def _most(self, heads: int) -> int:
        return max(1, min(MOST_CLUSTERS, heads // 2))

    def _mixture(self, standard: np.ndarray, count: int, starts: int) -> GaussianMixture:
        with warnings.catch_warnings():
            # Heads that are all alike make one cluster; both classes then get the same centre and every score is .5.
            warnings.filterwarnings("ignore", message="Number of distinct clusters")
            warnings.filterwarnings("ignore", message="Best performing initialization did not converge")
            return GaussianMixture(
                count, covariance_type="diag", reg_covar=1e-2, n_init=starts, random_state=self.random_state
            ).fit(standard)

    def _name_clusters(self) -> None:
        scores = self.centres_[:, 0]  # by SSD's own score, sparsity
        self.semantic_ = scores > (scores.min() + scores.max()) / 2
        if self.method == "threshold" or not self.semantic_.any():
            self.semantic_ = np.arange(len(scores)) == (len(scores) - 1 if self.method == "threshold" else scores.argmax())
        spatial, semantic = self.centres_[~self.semantic_].mean(0), self.centres_[self.semantic_].mean(0)
        step = semantic - spatial
        length = float(np.linalg.norm(step))
        self.axis_ = step / length if length > 1e-9 else np.zeros_like(step)
        self.middle_ = float(((spatial + semantic) / 2) @ self.axis_)
        self.spread_ = max(length / 2, 1e-9)

    @property
    def verdict_(self) -> str:
        """What BIC says of the number of clusters, in a sentence."""
        if not len(self.bic_):
            return "There is one head, and no other to compare it with: its class is by SSD's threshold."
        listed = ", ".join(f"{k} {value:,.0f}" for k, value in enumerate(self.bic_, 1))
        if self.supported_ == 1:
            return f"The data do not support two kinds of heads: one cluster fits best (BIC {listed}); trust the graded score."
        if self.supported_ == 2:
            return f"The data support two kinds of heads (BIC {listed})."
        return (
            f"The data support more kinds of heads than two, best {self.supported_} (BIC {listed}): two classes are a choice; "
            "the graded score keeps what they leave out."
        )

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """float64 [heads, 2]: posterior of spatial and semantic.

        Args:
            X: float [heads, features], as in `fit`.
        """
        values = np.asarray(X, dtype=np.float64)
        standard = self._standardised(values)
        if self.method == "mixture":
            assert self.mixture_ is not None
            semantic = self.mixture_.predict_proba(standard)[:, self.semantic_].sum(1)
        elif self.method == "kmeans":
            far = ((standard[:, None] - self.centres_[None]) ** 2).mean(2)
            near = np.exp(-0.5 * (far - far.min(1, keepdims=True)) / self.width_)
            semantic = near[:, self.semantic_].sum(1) / near.sum(1)
        else:
            semantic = 1 / (1 + np.exp(-np.clip((values[:, 0] - self.threshold) / self.scale_[0], -40, 40)))
        return np.stack([1 - semantic, semantic], 1)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """str [heads]: the class of each head, of `classes_`.

        Args:
            X: float [heads, features], as in `fit`.
        """
        return self.classes_[self.predict_proba(X).argmax(1)]

    def score_semantic(self, X: Any) -> np.ndarray:  # noqa: N803
        """float64 [heads] in 0 .. 1, graded: where the head lies between the two centres, on a logistic scale that is .12
        at the spatial centre and .88 at the semantic one. The posterior saturates and would forget the order of heads.

        Args:
            X: float [heads, features], as in `fit`.
        """
        along = self._standardised(np.asarray(X, dtype=np.float64)) @ self.axis_ - self.middle_
        return 1 / (1 + np.exp(-2 * np.clip(along / self.spread_, -20, 20)))

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean_) / self.scale_


def classify(
    trace: TraceDataset | str | Path, shape: ModelShape, classifier: HeadClassifier | None = None, resamples: int = 20
) -> Heads:
    """Classify the KV heads of a traced model; under grouped queries a KV head has the mean features of its query heads.

    `confidence` is the posterior of the class given, `stability` the share of `resamples` bootstraps over images in
    which a classifier fitted anew gives the same class.

    A model of one head has it classified by SSD's threshold.

    A statistic that is no number (attention that overflowed) is warned of, and the mean of the other heads stands in.

    Args:
        trace: of all layers and heads, or its folder.
        shape: of the traced model.
        classifier: how heads are told apart, fitted here anew; by default `HeadClassifier()`.
        resamples: bootstraps over images.

    Raises:
        DataError: the trace is of another model, or lacks heads.
    """
    trace = trace if isinstance(trace, TraceDataset) else TraceDataset(trace)
    if trace.meta["weights"] != shape.weights:
        raise DataError(f"{trace.path}: a trace of {trace.meta['model']} with other weights than {shape.name}: trace again.")
    chosen = [name for name in ("layers", "heads") if (trace.meta.get("selection") or {}).get(name) is not None]
    if chosen:
        raise DataError(
            f"{trace.path}: holds a choice of {' and '.join(chosen)}, and classes need all of them: trace again without "
            f"{' and '.join(f'`{name}`' for name in chosen)}."
        )
    records = trace.heads()
    if (odd := odd_heads(records)) > 0:
        warnings.warn(f"{trace.path}: {odd} heads have statistics that are no numbers; means stand in.", stacklevel=2)
    table = features(records, shape.query_heads, shape.kv_heads)
    if len(table) != shape.layers * shape.kv_heads:
        raise DataError(
            f"{trace.path}: the table has {len(table)} KV heads, {shape.name} {shape.layers} x {shape.kv_heads}: trace again."
        )
    values = table[list(FEATURES)].to_numpy()
    classifier = clone(classifier or HeadClassifier())
    if len(values) == 1:
        classifier.set_params(method="threshold")
    classifier.fit(values)
    classes = classifier.predict(values)
    table.insert(2, "class", classes)
    table.insert(3, "semantic_score", classifier.score_semantic(values))
    table.insert(4, "confidence", classifier.predict_proba(values).max(1))
    table.insert(5, "stability", _stability(records, shape, classes, classifier, resamples))
    facts = {"model": shape.name, "architecture": shape.architecture, "weights": shape.weights, "verdict": classifier.verdict_}
    return Heads(table, {**facts, "seed": classifier.random_state, "features": list(FEATURES)})


def _stability(
    records: pd.DataFrame, shape: ModelShape, classes: np.ndarray, classifier: HeadClassifier, resamples: int
) -> np.ndarray:
    seed = classifier.random_state
    images = sorted(records["sample"].unique())
    per_image = [
        features(part, shape.query_heads, shape.kv_heads)[list(FEATURES)].to_numpy()
        for _, part in records.groupby("sample", sort=True)
    ]
    stacked, rng = np.stack(per_image), np.random.default_rng(seed)
    same = np.zeros(len(classes))
    for turn in range(resamples):
        values = stacked[rng.integers(len(images), size=len(images))].mean(0)
        again = clone(classifier).set_params(random_state=seed + turn, n_init=3)
        same += again.fit(values).predict(values) == classes
    return same / max(resamples, 1)
