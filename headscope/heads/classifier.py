"""HeadClassifier: a mixture of two clusters that learns the spatial / semantic split."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.mixture import GaussianMixture

from headscope.errors import DataError
from headscope.heads.features import FEATURES, features, odd_heads
from headscope.policy.policy import ModelShape
from headscope.storage import write_whole
from headscope.tracing.dataset import TraceDataset

SPATIAL, SEMANTIC = "spatial", "semantic"
_KEY = b"headscope_heads"


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """Spatial or semantic, by a Gaussian mixture of two clusters over standardised features; an estimator as scikit-learn's.

    The published map of Janus-Pro has no gap (the share of heads above any threshold falls smoothly), so a hard split
    is a choice; beside the class stand a score and a confidence.

    Args:
        seed: of the mixture's starts. starts: how many; the likeliest stays.

    Attributes after `fit`:
        mixture_: the mixture; mean_, scale_: of the standardisation; semantic_: the semantic component's number;
        axis_, middle_, spread_: the line through both centres, where its middle lies, and how far each centre is from it.

    Example:
        >>> classifier = HeadClassifier(seed=0).fit(table[list(FEATURES)])  # doctest: +SKIP
        >>> classifier.predict(table[list(FEATURES)])  # doctest: +SKIP
    """

    def __init__(self, seed: int = 0, starts: int = 10) -> None:
        self.seed = seed
        self.starts = starts

    def fit(self, X: Any, y: Any = None) -> HeadClassifier:  # noqa: N803
        """X: float [heads, features] in the order of FEATURES, sparsity_1 first. y is not used.

        Raises:
            DataError: fewer than two heads, or numbers that are not finite.
        """
        values = np.asarray(X, dtype=np.float64)
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
            raise DataError(f"Found {values.shape} features, expected at least two heads and finite numbers: trace again.")
        self.mean_ = values.mean(0)
        self.scale_ = np.where(values.std(0) > 1e-12, values.std(0), 1.0)
        standard = self._standardised(values)
        with warnings.catch_warnings():
            # Heads that are all alike make one cluster; both classes then get the same centre and every score is .5.
            warnings.filterwarnings("ignore", message="Number of distinct clusters")
            self.mixture_ = GaussianMixture(
                2, covariance_type="diag", reg_covar=1e-2, n_init=self.starts, random_state=self.seed
            ).fit(standard)
        centres = self.mixture_.means_
        self.semantic_ = int(centres[:, 0].argmax())  # by SSD's own score, sparsity
        step = centres[self.semantic_] - centres[1 - self.semantic_]
        length = float(np.linalg.norm(step))
        self.axis_ = step / length if length > 1e-9 else np.zeros_like(step)
        self.middle_ = float((centres.sum(0) / 2) @ self.axis_)
        self.spread_ = max(length / 2, 1e-9)
        self.classes_ = np.array([SPATIAL, SEMANTIC])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """float64 [heads, 2]: posterior of spatial and semantic."""
        posterior = self.mixture_.predict_proba(self._standardised(np.asarray(X, dtype=np.float64)))
        return posterior[:, [1 - self.semantic_, self.semantic_]]

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The class of each head."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def score_semantic(self, X: Any) -> np.ndarray:  # noqa: N803
        """float64 [heads] in 0 .. 1, graded: where the head lies between the two centres, on a logistic scale that is .12
        at the spatial centre and .88 at the semantic one. The posterior saturates and would forget the order of heads."""
        along = self._standardised(np.asarray(X, dtype=np.float64)) @ self.axis_ - self.middle_
        return 1 / (1 + np.exp(-2 * np.clip(along / self.spread_, -20, 20)))

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean_) / self.scale_


@dataclass(frozen=True)
class Heads:
    """The classes of all KV heads.

    Attributes:
        table: layer, kv_head, class, semantic_score, confidence, stability, then the features.
        meta: model, its two fingerprints, seed, features.
    """

    table: pd.DataFrame
    meta: dict[str, Any]

    def scores(self) -> torch.Tensor:
        """float32 [layers, kv_heads]: semantic scores."""
        wide = self.table.pivot(index="layer", columns="kv_head", values="semantic_score")
        return torch.tensor(wide.to_numpy(), dtype=torch.float32)

    def save(self, path: str | Path) -> Path:
        """Write a parquet file, whole or not at all."""
        table = pa.Table.from_pandas(self.table, preserve_index=False)
        kept = {**(table.schema.metadata or {}), _KEY: json.dumps(self.meta).encode()}
        table = table.replace_schema_metadata(kept)
        return write_whole(path, lambda target: pq.write_table(table, target))

    @classmethod
    def load(cls, path: str | Path) -> Heads:
        """Read what `save` wrote.

        Raises:
            DataError: missing, damaged, or another kind of file.
        """
        try:
            table = pq.read_table(path)
            meta = json.loads((table.schema.metadata or {})[_KEY])
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; run `headscope heads` first.") from None
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a file of head classes ({error}); run `headscope heads` again.") from None
        return cls(table.to_pandas(), meta)


def classify(trace: TraceDataset, shape: ModelShape, seed: int = 0, resamples: int = 20) -> Heads:
    """Classify the KV heads of a traced model.

    `confidence` is the posterior of the class given, `stability` the share of `resamples` bootstraps over pictures in
    which a classifier fitted anew gives the same class.

    A statistic that is no number (attention that overflowed) is warned of, and the mean of the other heads stands in.

    Raises:
        DataError: the trace is of another model, or lacks heads.
    """
    if trace.meta["weights"] != shape.weights:
        raise DataError(f"{trace.path}: a trace of {trace.meta['model']} with other weights than {shape.name}: trace again.")
    records = trace.heads()
    if (odd := odd_heads(records)) > 0:
        warnings.warn(f"{trace.path}: {odd} heads have statistics that are no numbers; means stand in.", stacklevel=2)
    table = features(records, shape.query_heads, shape.kv_heads)
    if len(table) != shape.layers * shape.kv_heads:
        raise DataError(
            f"{trace.path}: the table has {len(table)} KV heads, {shape.name} {shape.layers} x {shape.kv_heads}: trace again."
        )
    values = table[list(FEATURES)].to_numpy()
    classifier = HeadClassifier(seed=seed).fit(values)
    classes = classifier.predict(values)
    table.insert(2, "class", classes)
    table.insert(3, "semantic_score", classifier.score_semantic(values))
    table.insert(4, "confidence", classifier.predict_proba(values).max(1))
    table.insert(5, "stability", _stability(records, shape, classes, seed, resamples))
    facts = {"model": shape.name, "architecture": shape.architecture, "weights": shape.weights}
    return Heads(table, {**facts, "seed": seed, "features": list(FEATURES)})


def _stability(records: pd.DataFrame, shape: ModelShape, classes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    pictures = sorted(records["sample"].unique())
    per_picture = [
        features(part, shape.query_heads, shape.kv_heads)[list(FEATURES)].to_numpy()
        for _, part in records.groupby("sample", sort=True)
    ]
    stacked, rng = np.stack(per_picture), np.random.default_rng(seed)
    same = np.zeros(len(classes))
    for turn in range(resamples):
        values = stacked[rng.integers(len(pictures), size=len(pictures))].mean(0)
        same += HeadClassifier(seed=seed + turn, starts=3).fit(values).predict(values) == classes
    return same / max(resamples, 1)
