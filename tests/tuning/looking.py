"""Made-up models whose heads look near, at the row above or everywhere, and lose by what they miss: what transfer can learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from headscope.geometry import Geometry
from headscope.heads import FEATURES
from headscope.policy import CacheSpec, Limit, ModelShape, Policy, Rule
from headscope.tuning import Coverage, Option, Seen, Source, default_options, rule_of, table_stride
from headscope.tuning.measure.options import COLUMNS


@dataclass(frozen=True)
class Looking:
    """A model, what its trace says, and the table that it would have."""

    shape: ModelShape
    seen: Seen
    wide: np.ndarray  # [layers * kv_heads], 0 looks near, 1 everywhere

    def loss(self, option: Option) -> np.ndarray:
        """[layers, kv_heads]: the square of what is missed, more with few bits, more in deep layers."""
        deep = 1 + np.arange(self.shape.layers)[:, None] / self.shape.layers
        return deep * (self.seen.coverage.missed(option) ** 2 + {16: 1e-6, 8: 1e-4, 4: 1e-2}[option.bits])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Of all options."""
        stride, rows = table_stride(self.shape.geometry), []
        for each in default_options(self.shape.geometry, (16, 8, 4)):
            for (layer, head), loss in np.ndenumerate(self.loss(each)):
                rows.append((layer, head, *each.numbers(), stride, loss))
        return pd.DataFrame(rows, columns=COLUMNS)

    @cached_property
    def rule(self) -> Rule:
        """What its policies carry."""
        return rule_of(self.seen, self.table, self.shape)

    def limit(self, share: float, prefix: int = 5) -> Limit:
        """A share of the plain cache."""
        return Limit.of_share(share, CacheSpec(self.shape, prefix))

    def source(self) -> Source:
        """A policy of it that carries its rule."""
        scores = torch.from_numpy(self.wide).float().view(self.shape.layers, -1)
        plain = Policy.uniform(self.shape, window=3, stride=self.shape.geometry.row_length, prefix=5)
        policy = plain.replace(semantic_score=scores)
        return Source(policy.replace(rule=self.rule))

    def lost(self, policy: Policy) -> float:
        """Sum of what the heads lose, each at its own size."""
        found = 0.0
        for layer in range(self.shape.layers):
            for bucket in policy.buckets(layer):
                option = Option(bucket.window, bucket.heavy, bucket.decay, bucket.bits)
                found += float(self.loss(option)[layer, list(bucket.heads)].sum())
        return found


def looking(
    seed: int, layers: int = 4, kv_heads: int = 4, *, group: int = 1, head_dim: int = 32, geometry: Geometry | None = None
) -> Looking:
    """A model whose heads are dealt by `seed`."""
    grid, rng = geometry or Geometry(8, 8), np.random.default_rng(seed)
    shape = ModelShape(f"model-{seed}", layers, kv_heads * group, kv_heads, head_dim, grid, f"a{seed}", f"w{seed}")
    return of_wide(shape, rng.random(layers * kv_heads))


def of_wide(shape: ModelShape, wide: np.ndarray) -> Looking:
    """A model of heads that look so wide."""
    tokens, row = shape.geometry.tokens, shape.geometry.row_length
    lags = np.arange(tokens)
    near = np.exp(-lags / (1 + row * wide[:, None])) + 0.5 * (lags == row)
    curve = near / near.sum(1, keepdims=True) * 0.9
    profile = 1 / (1 + np.tile(np.arange(tokens), (len(wide), 1)) ** (1 - wide[:, None]))
    each = shape.query_heads // shape.kv_heads
    curves = {"window_coverage": np.cumsum(curve, 1), "column_profile": profile / profile.sum(1, keepdims=True)}
    spread = {name: np.repeat(value.reshape(shape.layers, shape.kv_heads, tokens), each, 1) for name, value in curves.items()}
    features = np.stack([wide * (1 + 0.1 * place) for place in range(len(FEATURES))], 1)
    return Looking(shape, Seen(features, Coverage({name: torch.from_numpy(v) for name, v in spread.items()}, shape)), wide)
