"""Without a rule: a head takes the numbers of the source's head that is nearest, then all are projected onto the limit."""

from __future__ import annotations

import numpy as np
import torch

from headscope.policy import BITS, Limit, Policy, fit
from headscope.tuning.measure.options import ANCHOR, Option
from headscope.tuning.propose.relaxation import medians
from headscope.tuning.transfer.sizes import carried, columns_of
from headscope.tuning.transfer.target import BY_DEPTH, BY_MAP, BY_TRACE, Seen, Target, depths, ranks


def nearest_settings(policy: Policy, seen: Seen | None, target: Target, limit: Limit, stride: int, buckets: int) -> Policy:
    """The policy of a target whose heads do as their nearest heads of the source do.

    Nearest is by features of both traces and depth, by rank of a score and depth, or by depth alone (then a layer's heads all
    get the setting that lies in the middle of those of the nearest layer). At most `buckets` settings stay in a layer.

    Args:
        policy: of the source.
        seen: what a trace of the source says, needed where the target has one.
        target: what is known of the other model.
        limit: of the target.
        stride: tokens between two choices of the heavy set there.
        buckets: most kinds of heads in a layer.

    Raises:
        BudgetError: the heads' kinds do not fit the limit at any size.
    """
    shape, made = target.shape, policy.shape
    own = [_own(policy, layer, head) for layer in range(made.layers) for head in range(made.kv_heads)]
    kinds = list(dict.fromkeys(own))
    away = _apart(_places(policy, seen, target.kind), _target_places(target))
    far = np.stack([away[:, [place for place, each in enumerate(own) if each == kind]].min(1) for kind in kinds], 1)
    sizes = columns_of(kinds, made.geometry)
    between = np.abs(sizes[:, None] - sizes[None]).sum(-1)
    chosen = between[far.argmin(1)]  # how unlike the nearest one's each kind is: [heads, kinds]
    if target.kind == BY_DEPTH:
        chosen = between[_of_layer(own, kinds, away)].sum(1)
    most = 1 if target.kind == BY_DEPTH else buckets
    settings: list[Option] = []
    for layer in range(shape.layers):
        mine = chosen[layer * shape.kv_heads : (layer + 1) * shape.kv_heads]
        some = medians(mine, most, [])
        settings += [carried(kinds[some[place]], made.geometry, shape.geometry) for place in mine[:, some].argmin(1)]
    return _fitted(settings, limit, stride, target)


def _own(policy: Policy, layer: int, head: int) -> Option:
    heavy = int(policy.heavy[layer, head])
    decay = float(policy.decay[layer, head]) if heavy else 1.0
    return Option(int(policy.window[layer, head]), heavy, decay, int(policy.bits[layer, head]))


def _places(policy: Policy, seen: Seen | None, kind: str) -> np.ndarray:
    """float64 [heads, C]: where the source's heads lie among those that are compared."""
    depth = depths(policy.shape.layers, policy.shape.kv_heads)[:, None]
    if kind == BY_TRACE:
        assert seen is not None
        return np.concatenate([seen.features, depth], 1)
    if kind == BY_MAP:
        return np.concatenate([ranks(policy.semantic_score.numpy()).reshape(-1, 1), depth], 1)
    return depth


def _target_places(target: Target) -> np.ndarray:
    depth = target.depth[:, None]
    if target.seen is not None:
        return np.concatenate([target.seen.features, depth], 1)
    if target.scores is not None:
        return np.concatenate([ranks(target.scores.double().numpy()).reshape(-1, 1), depth], 1)
    return depth


def _apart(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64 [heads of the target, heads of the source]: distances, in standard deviations of both together."""
    scale = np.maximum(np.concatenate([source, target]).std(0), 1e-9)
    return np.sqrt((((target / scale)[:, None] - (source / scale)[None]) ** 2).sum(-1))


def _of_layer(own: list[Option], kinds: list[Option], away: np.ndarray) -> np.ndarray:
    """int64 [heads of the target, heads of a layer]: the kinds of the source's nearest layer."""
    place = np.array([kinds.index(each) for each in own])
    nearest = np.isclose(away, away.min(1, keepdims=True))
    count = int(nearest.sum(1).min())
    return np.stack([place[np.flatnonzero(row)[:count]] for row in nearest])


def _fitted(settings: list[Option], limit: Limit, stride: int, target: Target) -> Policy:
    """At the largest size that fits; where that takes fewer bits than the settings have, in the most that do."""
    size = (target.shape.layers, target.shape.kv_heads)
    window, heavy, decay, bits = (
        torch.tensor([getattr(each, name) for each in settings]).view(size) for name in ("window", "heavy", "decay", "bits")
    )
    for most in BITS:
        fewer = bits.clamp(max=most).to(torch.uint8)
        least = limit.spec.head_bytes(0, heavy.clamp(max=1).numpy(), ANCHOR, stride, fewer.numpy()).sum()
        if least <= limit.per_row:
            break
    score = target.semantic_score()
    return fit(window, heavy, limit, stride=stride, anchor=ANCHOR, decay=decay.float(), semantic_score=score, bits=fewer)
