"""The statistics by their definitions, one query and one key at a time: nothing of the tracer is in here."""

from __future__ import annotations

import math

import numpy as np


def by_definition(attention: np.ndarray, name: str, cols: int) -> float:
    """attention [Q, P + Q] of image queries 0 .. Q - 1 without padding; the image has one token more, which was never fed."""
    queries, prefix = attention.shape[0], attention.shape[1] - attention.shape[0]
    tokens = queries + 1
    rows = tokens // cols
    place = [(t // cols, t % cols) for t in range(queries)]
    image = attention[:, prefix:]
    scaled = image / image.sum(1, keepdims=True)

    def chebyshev(q: int, k: int) -> int:
        return max(abs(place[q][0] - place[k][0]), abs(place[q][1] - place[k][1]))

    def near(weights: np.ndarray, radius: int) -> float:
        return sum(weights[q, k] for q in range(queries) for k in range(q + 1) if chebyshev(q, k) <= radius) / queries

    def seen(k: int) -> list[int]:
        return [q for q in range(queries) if k <= prefix + q]

    def lag(n: int) -> float:
        return sum(image[q, q - n] for q in range(n, queries)) / queries

    def margin(*columns: int) -> float:
        return sum(image[:, k].sum() for k in range(queries) if place[k][1] in columns) / queries

    def half_mass(weights: np.ndarray, far) -> float:
        total = weights.sum()
        for d in range(tokens + 1):
            within = sum(weights[q, k] for q in range(queries) for k in range(q + 1) if far(q, k) <= d)
            if within >= 0.5 * total - 1e-9:
                return float(d)
        raise AssertionError

    def decay(power: bool, fit: bool) -> float:
        x, y = [], []
        for d in range(1, max(rows, cols)):
            found = [image[q, k] for q in range(queries) for k in range(q + 1) if chebyshev(q, k) == d]
            if found:
                x.append(math.log(d) if power else d)
                y.append(math.log(max(np.mean(found), 1e-8)))
        slope, start = np.polyfit(x, y, 1)
        if not fit:
            return -slope
        left = sum((b - slope * a - start) ** 2 for a, b in zip(x, y, strict=True))
        return 1 - left / sum((b - np.mean(y)) ** 2 for b in y)

    def persistence(ahead: int) -> float:
        shares = []
        for r in range(2, rows - ahead):
            sets = []
            for row in (r, r + ahead):
                sums = [sum(image[q, k] for q in range(queries) if place[q][0] == row) for k in range(r * cols)]
                sets.append(set(np.argsort(sums)[::-1][:cols].tolist()))
            shares.append(len(sets[0] & sets[1]) / cols)
        return float(np.mean(shares)) if shares else math.nan

    alphas = [np.mean([attention[q, k] for q in seen(k)]) for k in range(prefix + queries)]
    mean = attention.mean(0)
    distances = [math.dist(place[q], place[k]) * scaled[q, k] for q in range(queries) for k in range(q + 1)]
    column_sums = image.sum(0)
    tenth = max(1, math.ceil(0.1 * tokens))
    values = {
        "neighbourhood_1": lambda: near(image, 1),
        "neighbourhood_2": lambda: near(image, 2),
        "sparsity_1": lambda: 1 - near(image, 1),
        "sparsity_2": lambda: 1 - near(image, 2),
        "sparsity_image_1": lambda: 1 - near(scaled, 1),
        "sparsity_image_2": lambda: 1 - near(scaled, 2),
        "mean_distance": lambda: sum(distances) / queries,
        "half_mass_distance": lambda: half_mass(scaled, chebyshev),
        "half_mass_lag": lambda: half_mass(image, lambda q, k: q - k),
        "decay_exponential": lambda: decay(False, False),
        "decay_exponential_fit": lambda: decay(False, True),
        "decay_power": lambda: decay(True, False),
        "decay_power_fit": lambda: decay(True, True),
        "window_row": lambda: sum(lag(n) for n in range(cols + 1)),
        "prefix_mass": lambda: attention[:, :prefix].sum() / queries,
        "first_token_mass": lambda: attention[:, 0].mean(),
        "margin_mass": lambda: margin(0, cols - 1),
        "margin_left": lambda: margin(0),
        "margin_right": lambda: margin(cols - 1),
        "entropy": lambda: np.mean([_entropy(attention[q]) / math.log(prefix + q + 1) for q in range(queries)]),
        "sink_rate": lambda: np.mean([alpha > 0.3 for alpha in alphas]),
        "column_concentration": lambda: sorted(column_sums)[-math.ceil(0.05 * queries)] / column_sums.sum(),
        "previous_token": lambda: lag(1),
        "row_above": lambda: lag(cols),
        "row_above_left": lambda: lag(cols + 1),
        "row_above_right": lambda: lag(cols - 1),
        "self_mass": lambda: lag(0),
        "column_variance": lambda: np.mean([np.var([image[q, k] for q in seen(prefix + k)]) for k in range(queries)]),
        "verticality": lambda: sum(p * math.log(p) for p in mean if p > 0),
        "diagonality": lambda: (
            -np.mean([sum(abs(prefix + q - k) * attention[q, k] for k in range(prefix + q + 1)) for q in range(queries)])
            / (prefix + queries)
        ),
        "persistence_1": lambda: persistence(1),
        "persistence_4": lambda: persistence(4),
        "best_tenth": lambda: np.mean([sum(sorted(image[q, :q])[::-1][:tenth]) for q in range(queries)]),
        "running_tenth": lambda: np.mean([_by_running(image, q)[:tenth].sum() for q in range(queries)]),
    }
    return float(values[name]())


def curve_by_definition(attention: np.ndarray, name: str, rows: int, cols: int) -> np.ndarray:
    """The same for the curves, as long as they are."""
    queries, prefix = attention.shape[0], attention.shape[1] - attention.shape[0]
    tokens = queries + 1
    image = attention[:, prefix:]
    if name == "footprint":
        made = np.zeros((rows, 2 * cols - 1))
        for q in range(queries):
            for k in range(q + 1):
                made[q // cols - k // cols, k % cols - q % cols + cols - 1] += image[q, k]
        return made / queries
    if name in ("lag_mass", "window_coverage"):
        lags = np.array([sum(image[q, q - n] for q in range(n, queries)) / queries for n in range(tokens)])
        return lags if name == "lag_mass" else np.cumsum(lags)
    if name == "entropy_by_row":
        each = [_entropy(attention[q]) / math.log(prefix + q + 1) for q in range(queries)]
        return np.array([np.mean([e for q, e in enumerate(each) if q // cols == row]) for row in range(rows)])
    if name == "column_profile":
        return np.array([np.mean(image[k:, k]) for k in range(queries)] + [0.0])
    ordered = {"best_coverage": lambda q: np.sort(image[q, :q])[::-1], "running_coverage": lambda q: _by_running(image, q)}[
        name
    ]
    return np.array([np.mean([ordered(q)[: m + 1].sum() for q in range(queries)]) for m in range(tokens)])


def _entropy(row: np.ndarray) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def _by_running(image: np.ndarray, q: int) -> np.ndarray:
    """Query q's attention to the tokens before it, those with the largest score so far first, ties to the newer."""
    score = [(sum(image[i, k] for i in range(q)), k) for k in range(q)]
    return np.array([image[q, k] for _, k in sorted(score, reverse=True)])
