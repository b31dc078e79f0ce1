"""What changes from one policy to another of the same shape, in tokens and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headscope.policy.footprint import CacheSpec
from headscope.policy.policy import Policy
from headscope.policy.tensors import KEPT, SCORE


@dataclass(frozen=True)
class Change:
    """A number before and after.

    Attributes:
        before: of the first policy.
        after: of the second.
    """

    before: int
    after: int


@dataclass(frozen=True)
class LayerChange:
    """What changes in a layer.

    Attributes:
        layer: its number, from 0.
        heads: KV heads that change.
        tokens: slots of all heads of the layer, as `Policy.slots` counts them.
        bytes: of all heads of the layer, for all rows of the spec.
        fields: names of what changes, in the order of `Policy`; `stride`, `prefix` and `lead`
            where they change what these heads take.
    """

    layer: int
    heads: tuple[int, ...]
    tokens: Change
    bytes: Change
    fields: tuple[str, ...]


@dataclass(frozen=True)
class PolicyDiff:
    """What changes from a policy to another.

    Attributes:
        same: both keep the same (`Policy.same_as`).
        spec: what the bytes of both are counted for: as the first one's are, each with the prefix that it assumes.
        stride: tokens between two choices of the heavy set.
        prefix: tokens of prompts that the accounting assumes.
        lead: columns between rows that are generated at once.
        tokens: slots of all heads.
        bytes: of all heads.
        plain_bytes: of the plain cache, which differ where the prefixes do.
        layers: those in which something changes.
    """

    same: bool
    spec: CacheSpec
    stride: Change
    prefix: Change
    lead: Change
    tokens: Change
    bytes: Change
    plain_bytes: Change
    layers: tuple[LayerChange, ...]


def diff(first: Policy, second: Policy, where: str = "the second policy") -> PolicyDiff:
    """Compare two policies of one shape.

    Example: window 24 in place of 16 in one head of layer 3: one layer, whose tokens grow by 8.

    Args:
        first: before.
        second: after.
        where: what the second one is called in messages, such as its file.

    Raises:
        PolicyMismatch: they are for other numbers of layers or heads, another size of heads, or another grid.
    """
    second.shape.check_alike(first.shape, where)
    pair = (first, second)
    specs = [first.spec().replace(prefix=policy.prefix) for policy in pair]
    tokens = [policy.slots().numpy() for policy in pair]
    sizes = [_bytes(policy, spec) for policy, spec in zip(pair, specs, strict=True)]
    changed = {name: (getattr(first, name) != getattr(second, name)).numpy() for name in KEPT}
    scores = [[_score(policy, head) for head in range(tokens[0].size)] for policy in pair]
    changed[SCORE] = np.array([one != two for one, two in zip(*scores, strict=True)]).reshape(tokens[0].shape)
    if first.stride != second.stride:
        changed["stride"] = ((first.heavy > 0) | (second.heavy > 0)).numpy()
    if first.prefix != second.prefix:
        changed["prefix"] = np.ones_like(tokens[0], dtype=bool)
    if first.lead != second.lead:
        changed["lead"] = np.ones_like(tokens[0], dtype=bool)
    moved = np.logical_or.reduce(list(changed.values()))
    layers = tuple(
        LayerChange(
            layer,
            tuple(int(head) for head in np.flatnonzero(moved[layer])),
            Change(*(int(count[layer].sum()) for count in tokens)),
            Change(*(int(size[layer].sum()) for size in sizes)),
            tuple(name for name, heads in changed.items() if heads[layer].any()),
        )
        for layer in np.flatnonzero(moved.any(1)).tolist()
    )
    return PolicyDiff(
        first.same_as(second),
        specs[0],
        Change(first.stride, second.stride),
        Change(first.prefix, second.prefix),
        Change(first.lead, second.lead),
        Change(*(int(count.sum()) for count in tokens)),
        Change(*(int(size.sum()) for size in sizes)),
        Change(*(spec.full_bytes for spec in specs)),
        layers,
    )


def _score(policy: Policy, number: int) -> tuple[str, bytes]:
    """The kind of score of a head, layer * kv_heads + head, and the table that it needs, in some form."""
    layer, head = divmod(number, policy.shape.kv_heads)
    has = policy.tables is not None and bool(policy.needs_table[layer, head] & policy.tables.has(torch.tensor(number)))
    return policy.score_of(layer, head), policy.tables.of([number]).digest() if has and policy.tables is not None else b""


def _bytes(policy: Policy, spec: CacheSpec) -> np.ndarray:
    """int64 [layers, kv_heads], for all rows."""
    window, heavy, anchor = (one.numpy() for one in (policy.window, policy.heavy, policy.anchor))
    return (
        spec.head_bytes(window, heavy, anchor, policy.stride, policy.bits.numpy(), policy.prompt.numpy(), policy.lead)
        * spec.rows
    )
