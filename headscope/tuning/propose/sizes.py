"""Sizes that every head was given, as a policy that its cache can hold: few kinds of heads a layer, within the byte limit."""

from __future__ import annotations

import torch

from headscope.errors import BudgetError
from headscope.policy import CacheSpec, Limit, Policy, fit

# How far two kinds of score are apart, in heavy tokens that both have: about the share of what is lost that `expected` saves.
OTHER_SCORE = 1 / 3


def fit_near(
    window: torch.Tensor,
    heavy: torch.Tensor,
    limit: Limit,
    *,
    stride: int,
    anchor: int,
    decay: float | torch.Tensor,
    semantic_score: torch.Tensor,
    bits: int | torch.Tensor = 16,
    prompt: int | torch.Tensor = 1,
    score: int | torch.Tensor = 0,
) -> Policy:
    """As `headscope.policy.fit`; where so many anchors have no room beside the buffers, the policy without them.

    Args:
        window: [layers, kv_heads], in proportion to the tokens of each head's window.
        heavy: [layers, kv_heads], in proportion to its heavy tokens, on the same scale.
        limit: what has to hold it.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that each head keeps, if they fit.
        decay: of the score at the end of each stride, one number or float32 [layers, kv_heads].
        semantic_score: float32 [layers, kv_heads] in [0, 1], noted in the policy.
        bits: of a kept number, one number or uint8 [layers, kv_heads].
        prompt: 1 for the whole prompt, 0 for its first and last token, one number or uint8 [layers, kv_heads].
        score: kind of score, a place in `BUILT_IN`, one number or uint8 [layers, kv_heads].
    """

    def with_anchors(count: int) -> Policy:
        written = {"decay": decay, "bits": bits, "prompt": prompt, "score": score}
        return fit(window, heavy, limit, stride=stride, anchor=count, semantic_score=semantic_score, **written)  # type: ignore[arg-type]

    try:
        return with_anchors(anchor)
    except BudgetError:
        return with_anchors(0)


def prompt_dropped(spec: CacheSpec) -> int:
    """Tokens of the prompt that a head with prompt 0 drops, of a cache that is counted so."""
    return spec.shape.prefix_slots(spec.prefix) - spec.shape.prefix_slots(spec.prefix, whole=False)


def merged(
    window: torch.Tensor,
    heavy: torch.Tensor,
    buckets: int,
    decay: torch.Tensor | None = None,
    bits: torch.Tensor | None = None,
    prompt: torch.Tensor | None = None,
    dropped: int = 0,
    score: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """At most `buckets` distinct kinds of heads (window, heavy, decay, bits, prompt, score) a layer: the two closest become the
    larger of each, repeatedly.

    How far two are apart is counted in tokens: a difference in decay counts as that share of the heavy tokens that both have,
    one in bits as that share of all tokens that both have, one in prompts as the tokens that are dropped, another kind of score
    as OTHER_SCORE of the heavy tokens that both have. Without heavy tokens decay is 1 and score 0, as they are never read.

    Example: windows 1, 2, 20 without heavy tokens and two buckets: 2, 2, 20.

    Args:
        window: [layers, kv_heads], tokens.
        heavy: [layers, kv_heads], tokens.
        buckets: most distinct kinds of heads in a layer.
        decay: [layers, kv_heads], by default 1 everywhere.
        bits: [layers, kv_heads], by default 16 everywhere.
        prompt: [layers, kv_heads], by default 1 everywhere.
        dropped: tokens that a head with prompt 0 drops.
        score: [layers, kv_heads], by default 0 everywhere.

    Returns:
        Window, heavy, decay, bits, prompt and score, [layers, kv_heads] each; what was given is left as it is.
    """
    window, heavy = window.clone(), heavy.clone()
    bits = torch.full_like(window, 16, dtype=torch.uint8) if bits is None else bits.clone()
    prompt = torch.ones_like(window, dtype=torch.uint8) if prompt is None else prompt.clone()
    decay = torch.ones_like(window, dtype=torch.float32) if decay is None else torch.where(heavy > 0, decay.float(), 1.0)
    score = torch.zeros_like(prompt) if score is None else torch.where(heavy > 0, score, 0).to(torch.uint8)

    def apart(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        other_bits = abs(a[3] - b[3]) / max(a[3], b[3]) * min(a[0] + a[1], b[0] + b[1])
        other = other_bits + abs(a[4] - b[4]) * dropped
        scored = (abs(a[2] - b[2]) + OTHER_SCORE * (a[5] != b[5])) * min(a[1], b[1])
        return abs(a[0] - b[0]) + abs(a[1] - b[1]) + scored + other

    for layer in range(len(window)):
        while True:
            every = list(
                zip(*(numbers[layer].tolist() for numbers in (window, heavy, decay, bits, prompt, score)), strict=True)
            )
            if len(kinds := sorted(set(every))) <= buckets:
                break
            closest = min(((a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :]), key=lambda two: apart(*two))
            both = torch.tensor([kind in closest for kind in every], device=window.device)
            more = max(closest, key=lambda kind: kind[1])  # whose scores choose more tokens says how they fade
            window[layer][both] = max(kind[0] for kind in closest)
            heavy[layer][both] = max(kind[1] for kind in closest)
            decay[layer][both], bits[layer][both] = more[2], int(max(kind[3] for kind in closest))
            prompt[layer][both], score[layer][both] = int(max(kind[4] for kind in closest)), int(more[5])
    return window, heavy, decay, bits, prompt, score
