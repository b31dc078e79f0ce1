"""Can the classes be trusted? How well two independent looks at the same heads agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from headscope.errors import DataError
from headscope.heads.classifier import HeadClassifier
from headscope.heads.features import FEATURES, features
from headscope.policy import ModelShape

REPEATS = 20


def measure_stability(
    table: pd.DataFrame,
    shape: ModelShape,
    classifier: HeadClassifier | None = None,
    *,
    others: dict[str, pd.DataFrame] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement of two classifications, each fitted on its own data: adjusted Rand index of the classes, Spearman's rank
    correlation of the graded scores.

    Rows: `prompts` n, two disjoint sets of n images each, REPEATS draws; `seeds`, the same data and another seed;
    `streams`, the conditional against the unconditional one; `rows`, each band of rows against the whole image, where the
    trace has bands; and each of `others`, traces of the same model made otherwise (another guidance scale, say).

    Args:
        table: of `TraceDataset.heads(band=None)`.
        shape: the model that was traced.
        classifier: with its parameters set, default `HeadClassifier()`.
        others: tables as `table`, of other traces of the same model, by the name that their row is given.
        seed: of the draws of images.

    Returns:
        what, value, rand, rand_low, rand_high (10 and 90 % of the draws), rank, rank_low, rank_high, draws.

    Raises:
        DataError: fewer than two images, or a single head.
    """
    if shape.layers * shape.kv_heads < 2:
        raise DataError(
            f"{shape.name} has one head, and stability compares the order and the classes of several: leave it out."
        )
    judge = classifier or HeadClassifier()
    whole = table[table["band"] == -1]
    images = np.array(sorted(whole["sample"].unique()))
    if len(images) < 2:
        raise DataError(f"Found {len(images)} image, expected at least two: trace more prompts.")
    rng = np.random.default_rng(seed)
    by_image = {number: _values(part, shape) for number, part in whole.groupby("sample")}
    rows = []
    count = 1
    while 2 * count <= len(images):
        draws = []
        for _ in range(REPEATS):
            mixed = rng.permutation(images)
            first, second = mixed[:count], mixed[count : 2 * count]
            pair = [np.mean([by_image[n] for n in part], 0) for part in (first, second)]
            draws.append(_agreement(pair[0], pair[1], judge, judge.random_state))
        rows.append(_row("prompts", str(count), draws))
        count *= 2
    everything = _values(whole, shape)
    rows.append(_row("seeds", "all", [_agreement(everything, everything, judge, judge.random_state + k) for k in range(1, 11)]))
    streams = {name: _values(part, shape) for name, part in whole.groupby("stream")}
    if len(streams) == 2:
        conditional, unconditional = streams.values()
        rows.append(_row("streams", "both", [_agreement(conditional, unconditional, judge, judge.random_state)]))
    for band, part in table[table["band"] >= 0].groupby("band"):
        rows.append(_row("rows", f"band {band}", [_agreement(_values(part, shape), everything, judge, judge.random_state)]))
    for name, other in (others or {}).items():
        values = _values(other[other["band"] == -1], shape)
        rows.append(_row("other trace", name, [_agreement(values, everything, judge, judge.random_state)]))
    return pd.DataFrame(rows)


def enough(table: pd.DataFrame, rand: float = 0.9, rank: float = 0.95) -> int | None:
    """The smallest number of prompts from which on the mean agreement stays at or above both figures; None if none does."""
    prompts = table[table["what"] == "prompts"]
    good = (prompts["rand"] >= rand) & (prompts["rank"] >= rank)
    steady = good[::-1].cummin()[::-1]
    return int(prompts.loc[steady, "value"].iloc[0]) if steady.any() else None


def _values(table: pd.DataFrame, shape: ModelShape) -> np.ndarray:
    return features(table, shape.query_heads, shape.kv_heads)[list(FEATURES)].to_numpy()


def _agreement(first: np.ndarray, second: np.ndarray, judge: HeadClassifier, seed: int) -> tuple[float, float]:
    one = clone(judge).fit(first)
    other = clone(judge).set_params(random_state=seed).fit(second)
    rand = adjusted_rand_score(one.predict(first), other.predict(second))
    return float(rand), float(spearmanr(one.score_semantic(first), other.score_semantic(second)).statistic)


def _row(what: str, value: str, draws: list[tuple[float, float]]) -> dict[str, object]:
    found: dict[str, object] = {"what": what, "value": value}
    for place, name in enumerate(("rand", "rank")):
        numbers = np.array([draw[place] for draw in draws])
        found |= {name: numbers.mean(), f"{name}_low": np.quantile(numbers, 0.1), f"{name}_high": np.quantile(numbers, 0.9)}
    return found | {"draws": len(draws)}
