"""What is known of a model that a policy is transferred to, and so by which kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.heads import FEATURES, head_features
from headscope.policy import ModelShape
from headscope.tuning.measure.coverage import Coverage

BY_TRACE, BY_MAP, BY_DEPTH = "by trace", "by map", "by depth"
# The feature that a published map shows: attention outside the neighbourhood of a token in two dimensions.
MAPPED = "sparsity_1"


@dataclass(frozen=True)
class Seen:
    """What a trace says of each head.

    Attributes:
        features: float64 [heads, F] of FEATURES, layer by layer.
        coverage: of its curves.
    """

    features: np.ndarray
    coverage: Coverage

    @classmethod
    def of(cls, table: pd.DataFrame, curves: Mapping[str, torch.Tensor], shape: ModelShape) -> Seen:
        """From a trace.

        Args:
            table: of `TraceDataset.heads()`.
            curves: of `TraceDataset.curves()`.
            shape: of the traced model.

        Raises:
            DataError: a statistic, a layer or a head is missing.
        """
        coverage = Coverage(curves, shape)
        found = head_features(table, shape.query_heads, shape.kv_heads)
        if len(found) != shape.layers * shape.kv_heads:
            raise DataError(
                f"The trace has statistics of {len(found)} KV heads, expected {shape.layers * shape.kv_heads}: trace again "
                "without `layers` and `heads`."
            )
        return cls(found[list(FEATURES)].to_numpy(dtype=np.float64), coverage)


@dataclass(frozen=True)
class Target:
    """A model that a policy is transferred to.

    Attributes:
        shape: of it.
        seen: what a trace of it says, or None.
        scores: float [layers, kv_heads] in [0, 1], such as a published map's, or None.

    Raises:
        DataError: scores of another number of layers or KV heads.
    """

    shape: ModelShape
    seen: Seen | None = None
    scores: torch.Tensor | None = None

    def __post_init__(self) -> None:
        expected = (self.shape.layers, self.shape.kv_heads)
        if self.scores is not None and tuple(self.scores.shape) != expected:
            raise DataError(
                f"The map has {tuple(self.scores.shape)} layers and heads, {self.shape.name} has {expected} layers and KV "
                "heads: name a map of this model."
            )

    @property
    def kind(self) -> str:
        """The best kind of transfer that this allows."""
        return BY_TRACE if self.seen is not None else BY_MAP if self.scores is not None else BY_DEPTH

    @property
    def depth(self) -> np.ndarray:
        """float64 [heads]: how deep a head lies, from 0 to 1."""
        return depths(self.shape.layers, self.shape.kv_heads)

    def semantic_score(self) -> torch.Tensor:
        """float32 [layers, kv_heads]: what is noted in the policy; .5 where nothing is known."""
        size = (self.shape.layers, self.shape.kv_heads)
        if self.scores is not None:
            return self.scores.float().clamp(0, 1)
        if self.seen is None:
            return torch.full(size, 0.5)
        return torch.from_numpy(self.seen.features[:, FEATURES.index(MAPPED)]).float().view(size).clamp(0, 1)


def depths(layers: int, kv_heads: int) -> np.ndarray:
    """float64 [layers * kv_heads]: the middle of a head's layer, from 0 (the first layer's begin) to 1 (the last one's end)."""
    return np.repeat((np.arange(layers) + 0.5) / layers, kv_heads)


def ranks(values: np.ndarray) -> np.ndarray:
    """float64 of the same size: which share of all values is smaller, equal ones half; in (0, 1), whatever their scale."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    ordered = np.sort(flat)
    below, upto = (np.searchsorted(ordered, flat, side=side) for side in ("left", "right"))
    return ((below + upto) / 2 / len(flat)).reshape(np.shape(values))
