"""A policy as two classes of heads, which is all that DuoAttention and kvpress know: full heads and streaming heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.policy.exchange.reckoning import (
    heads,
    kept_tokens,
    lost_bits,
    lost_heavy,
    lost_lead,
    lost_prompt,
    lost_rest,
    span,
)
from headscope.policy.policy import Policy


@dataclass(frozen=True)
class TwoClasses:
    """Full heads see everything; streaming heads see the first `sink` tokens, the `recent` ones before the query, and it.

    Attributes:
        full: bool [layers, kv_heads].
        sink: tokens from the sequence's beginning, the prompt among them.
        recent: tokens before the query, itself not counted; at least 1, as both tools read 0 as everything.
    """

    full: torch.Tensor
    sink: int
    recent: int


def two_classes(policy: Policy) -> TwoClasses:
    """The fewest full heads and the smallest common sizes that hide nothing which a head of the policy sees.

    A head that chooses heavy tokens may need any of them, so it is full; the others stream, all with the largest window and the
    most anchors among them.

    Args:
        policy: that is exported.
    """
    full = (policy.heavy > 0) | (policy.window >= policy.shape.geometry.tokens - 1)
    if bool(full.all()):
        return TwoClasses(full, policy.prefix, 1)
    anchor, window = int(policy.anchor[~full].max()), int(policy.window[~full].max())
    return TwoClasses(full, policy.prefix + anchor, max(window, 1))


def ranks(policy: Policy, full: torch.Tensor) -> torch.Tensor:
    """float64 [layers, kv_heads]: distinct values in (0, 1), in the order of what heads keep; full heads lie above 0.5.

    Evenly spaced in each class, so that neither a quantile nor noise of 1e-6 puts two heads in another order.

    Args:
        policy: that is exported.
        full: bool [layers, kv_heads].
    """
    kept = kept_tokens(policy).flatten()
    found = torch.zeros(full.numel(), dtype=torch.float64)
    for offset, chosen in ((0.0, ~full.flatten()), (0.5, full.flatten())):
        places = chosen.nonzero()[:, 0]
        ordered = places[torch.argsort(kept[places], stable=True)]
        found[ordered] = offset + (torch.arange(len(ordered), dtype=torch.float64) + 0.5) / (2 * max(len(ordered), 1))
    return found.view(full.shape)


def lost_classes(policy: Policy, classes: TwoClasses) -> tuple[str, ...]:
    """Sentences on what two classes do not carry.

    Args:
        policy: that is exported.
        classes: what was made of it.
    """
    lost, streaming = [], ~classes.full
    if bool(streaming.any()):
        window, anchor = policy.window[streaming], policy.anchor[streaming]
        if bool((window != classes.recent).any()):
            lost.append(
                f"window: {heads(int(streaming.sum()))} keep {span(window)} tokens before the query; there each streaming head "
                f"keeps {classes.recent}"
            )
        if bool((anchor != classes.sink - policy.prefix).any()):
            lost.append(f"anchor: {span(anchor)} image tokens; there each streaming head keeps {classes.sink - policy.prefix}")
    lost += lost_heavy(policy, "there they are full heads and keep every token")
    return (*lost, *lost_bits(policy), *lost_prompt(policy), *lost_lead(policy), *lost_rest())
