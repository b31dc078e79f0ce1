"""The rule: from what a head looks at to what it loses at each option, learnt on one model or several, applied to another.

What carries over is not what one head needs but how a head's loss hangs on the attention that an option leaves out in *this*
head, on how it looks, how deep it lies, and on the option itself. Log losses are regressed on these by extremely randomised
trees (Geurts, Ernst and Wehenkel, Extremely randomized trees, 2006): they ask for no scale and no shape of the curves. Where
less is known of the target the same trees learn from less: its rank in a map and its depth, or its depth alone. Heads that lose
much and heads that lose little are not told apart then, and a mean of logs would pass the first over, so the trees learn the
root of the loss: by depth that loses a quarter to 60 % less at 20 % on the bundled models, by map up to a third less on three
pairs of four and a tenth more on one, by trace it gains nothing (reports/transfer/README.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.heads import FEATURES
from headscope.policy import ModelShape, Rule
from headscope.tuning.measure.options import COLUMNS, Losses, Option, losses_from
from headscope.tuning.transfer.sizes import carried, columns_of
from headscope.tuning.transfer.target import BY_MAP, BY_TRACE, MAPPED, Seen, Target, depths, ranks

# Trees of the forest, and the fewest cells of the table that one of their leaves holds.
TREES, LEAF = 200, 3
# Added to a missed share before its logarithm: below it nothing is taken to be missed.
LITTLE = 1e-4
LEAST = 1e-7


def rule_of(seen: Seen, table: pd.DataFrame, shape: ModelShape) -> Rule:
    """What a policy file carries of a model's trace and sensitivity table: of options with whole prompts, chosen by attention
    received.

    Args:
        seen: of the trace.
        table: losses in nats of every head (of `sensitivity_table`, but no coverage).
        shape: of the model.

    Raises:
        DataError: the table is of another model.
    """
    losses = losses_from(table, shape.layers, shape.kv_heads, shape.geometry)
    whole = [place for place, option in enumerate(losses.options[:-1]) if option.prompt and not option.score]
    known = [place for place in whole if np.isfinite(losses.loss[:, :, place]).all()]
    options = [losses.options[place] for place in known]
    if not options:
        raise DataError("The sensitivity table has no option of which every head is measured: measure it to its end.")
    missed = np.stack([seen.coverage.missed(option) for option in options], -1)
    numbers = [(option.window, option.heavy, option.decay, option.bits) for option in options]
    return Rule(
        FEATURES,
        torch.from_numpy(seen.features).float().view(shape.layers, shape.kv_heads, -1),
        torch.tensor(numbers, dtype=torch.float32),
        torch.from_numpy(missed).float().clamp(0, 1),
        torch.from_numpy(np.maximum(losses.loss[:, :, known], LEAST)).float(),
        losses.stride,
    )


def options_of(rule: Rule) -> list[Option]:
    """The options that a rule was measured at."""
    return [Option(int(w), int(h), round(float(d), 6), int(b)) for w, h, d, b in rule.options.tolist()]


def predicted(sources: Sequence[tuple[Rule, ModelShape]], target: Target, seed: int = 0) -> Losses:
    """The table that the target would have.

    Args:
        sources: rules, each with the shape of its model; learnt from all together.
        target: what is known of the model.
        seed: of the trees.

    Raises:
        DataError: a rule lacks a feature that the trace of this version has.
    """
    from sklearn.ensemble import ExtraTreesRegressor  # late: it takes a second, and reading the rule does not need it

    rule, made = sources[0]
    geometry, other = made.geometry, target.shape.geometry
    options = list(dict.fromkeys(carried(option, geometry, other) for option in options_of(rule)))
    options = [option for option in options if option.window + option.heavy < other.tokens - 1 or option.bits < 16]
    rows = [_of_source(each, shape, target.kind) for each, shape in sources]
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=0.5, random_state=seed)
    logs = np.concatenate([y for _, y in rows])
    forest.fit(np.concatenate([x for x, _ in rows]), logs if target.kind == BY_TRACE else np.exp(logs / 2))
    learnt = forest.predict(_of_target(target, options)).reshape(target.shape.layers, target.shape.kv_heads, -1)
    found = np.exp(learnt) if target.kind == BY_TRACE else learnt**2
    stride = _stride(rule.stride, geometry, other)
    table = [
        (layer, head, *option.numbers(), stride, float(found[layer, head, place]))
        for place, option in enumerate(options)
        for layer in range(target.shape.layers)
        for head in range(target.shape.kv_heads)
    ]
    return losses_from(pd.DataFrame(table, columns=COLUMNS), target.shape.layers, target.shape.kv_heads, other)


def _of_source(rule: Rule, shape: ModelShape, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns [heads * options, C] and log losses [heads * options]."""
    if missing := [name for name in FEATURES if name not in rule.names]:
        raise DataError(f"The rule of {shape.name} lacks {', '.join(missing)}: search again with this version.")
    features = rule.features.double().flatten(0, 1).numpy()[:, [rule.names.index(name) for name in FEATURES]]
    sizes, depth = columns_of(options_of(rule), shape.geometry), depths(shape.layers, shape.kv_heads)
    loss = np.log(np.maximum(rule.loss.double().flatten(0, 1).numpy(), LEAST))
    missed = rule.missed.double().flatten(0, 1).numpy()
    return _columns(kind, sizes, depth, features, missed, features[:, FEATURES.index(MAPPED)]), loss.ravel()


def _of_target(target: Target, options: Sequence[Option]) -> np.ndarray:
    """The same columns of the target's heads."""
    sizes, seen = columns_of(options, target.shape.geometry), target.seen
    scores = None if target.scores is None else target.scores.double().flatten().numpy()
    missed = None if seen is None else np.stack([seen.coverage.missed(option).ravel() for option in options], 1)
    return _columns(target.kind, sizes, target.depth, None if seen is None else seen.features, missed, scores)


def _columns(
    kind: str,
    sizes: np.ndarray,
    depth: np.ndarray,
    features: np.ndarray | None,
    missed: np.ndarray | None,
    scores: np.ndarray | None,
) -> np.ndarray:
    """What the trees see of each head at each option, by kind: float64 [heads * options, C]."""
    heads, options = len(depth), len(sizes)
    of_heads = [depth[:, None]]
    if kind == BY_TRACE:
        assert features is not None
        of_heads.append(features)
    if kind == BY_MAP:
        assert scores is not None
        of_heads.append(ranks(scores)[:, None])
    parts = [np.tile(sizes, (heads, 1)), np.repeat(np.concatenate(of_heads, 1), options, 0)]
    if kind == BY_TRACE:
        assert missed is not None
        parts.append(np.log(missed + LITTLE).reshape(-1, 1))
    return np.concatenate(parts, 1)


def _stride(stride: int, source: Geometry, target: Geometry) -> int:
    """The stride that is to the target's rows what this one is to the source's: rows stay rows, parts of a row parts."""
    row, other = source.stride_row, target.stride_row
    wanted = stride * other / row
    return min(target.strides(), key=lambda each: (abs(np.log(each / wanted)), each))
