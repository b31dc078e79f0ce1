"""Numbers that several formats need: how long a sequence is, what each head keeps of it, what a tool takes that keeps so much,
and the sentences on what is lost."""

from __future__ import annotations

import torch

from headscope.policy.footprint import CACHE_DTYPES, CacheSpec
from headscope.policy.policy import Policy
from headscope.policy.shape import PROMPT_ENDS


def one_image(policy: Policy) -> CacheSpec:
    """What bytes are counted for in every export: one image with all its streams, in the dtype of the policy's limit."""
    return policy.spec().replace(batch=1, count_prefix=True)


def length_of(policy: Policy) -> int:
    """Tokens of the whole sequence: the longest prompt and the image. Ratios in exports are of so many."""
    return policy.prefix + policy.shape.geometry.tokens


def kept_tokens(policy: Policy) -> torch.Tensor:
    """int64 [layers, kv_heads]: tokens that a head has room for, the query included, never more than there are.

    Example: prefix 10, window 24, no heavy tokens, 256 image tokens: 35 of 266.
    """
    return policy.slots().clamp(max=length_of(policy))


def bytes_for(policy: Policy, tokens: torch.Tensor, number_bytes: int | torch.Tensor | None = None) -> int:
    """Bytes of keys and values for one image with all its streams.

    Args:
        policy: of which model.
        tokens: [layers, kv_heads], kept there.
        number_bytes: of a number, one or [layers, kv_heads]; by default as the policy's limit is counted.
    """
    spec = one_image(policy)
    each = CACHE_DTYPES[spec.dtype] if number_bytes is None else number_bytes
    return int((tokens.long() * 2 * policy.shape.head_dim * each).sum()) * spec.streams


def plain_bytes(policy: Policy) -> int:
    """Bytes for one image where every head keeps every token."""
    return bytes_for(policy, torch.full_like(policy.window, length_of(policy)))


def span(numbers: torch.Tensor) -> str:
    """`24`, or `3 to 40`."""
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def heads(number: int) -> str:
    """`1 KV head`, `12 KV heads`."""
    return f"{number:,} KV head{'' if number == 1 else 's'}"


def lost_heavy(policy: Policy, instead: str) -> list[str]:
    """Sentences on heavy tokens and how they are chosen.

    Args:
        policy: that is exported.
        instead: what such heads keep there.
    """
    chosen = policy.heavy > 0
    if not bool(chosen.any()):
        return []
    return [
        f"heavy: {heads(int(chosen.sum()))} choose {span(policy.heavy[chosen])} older tokens by score; {instead}",
        f"decay, per_visit, stride{', score' if policy.other_scores else ''}: nothing is chosen by a score that adds up",
    ]


def lost_bits(policy: Policy) -> list[str]:
    """A sentence on heads of fewer than 16 bits."""
    few = policy.bits != 16
    if not bool(few.any()):
        return []
    return [
        f"bits: {heads(int(few.sum()))} keep {span(policy.bits[few])} bits a number; there all are kept in the model's dtype"
    ]


def lost_prompt(policy: Policy) -> list[str]:
    """A sentence on heads that keep two tokens of the prompt."""
    short = int(policy.drops_prompt.sum())
    if not short or policy.prefix <= PROMPT_ENDS:
        return []
    return [f"prompt: {heads(short)} keep its first and its last token; there all of it is kept"]


def lost_lead(policy: Policy) -> list[str]:
    """A sentence on rows that are generated at once."""
    if not policy.rows_at_once:
        return []
    return [f"lead: a row begins {policy.lead} columns after the one above; there row follows row, one token a step"]


def lost_rest() -> list[str]:
    """What no format but headscope's own has a place for."""
    return ["semantic_score, limit, results, provenance, fingerprints of the model: the format has no place for them"]
