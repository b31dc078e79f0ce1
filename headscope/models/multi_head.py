"""What `multi_head_attention_forward` (`nn.MultiheadAttention`) computes, taken apart: queries, keys, values and the mask."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import functional

_SIGNATURE = inspect.signature(functional.multi_head_attention_forward)


def given(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by their names, those that were left out too."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def heads_of(of: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, H, L, D], keys and values [B, H, S, D] of the arguments of a call.

    Args:
        of: see `given`; query [L, B, E] or [L, E], key and value [S, B, E] or [S, E].
    """
    inputs = [of[name] if of[name].dim() == 3 else of[name][:, None] for name in ("query", "key", "value")]
    size = inputs[0].shape[2] // of["num_heads"]
    weights = [of["q_proj_weight"], of["k_proj_weight"], of["v_proj_weight"]]
    if not of["use_separate_proj_weight"]:
        weights = of["in_proj_weight"].chunk(3)
    biases = [None] * 3 if of["in_proj_bias"] is None else of["in_proj_bias"].chunk(3)
    q, k, v = (
        functional.linear(x, weight, bias).unflatten(2, (-1, size)).permute(1, 2, 0, 3)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    return q, k, v


def mask_of(of: dict[str, Any], query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """The masks of a call, where True hides, as one additive mask [1 or B, 1 or H, L, S].

    Args:
        of: see `given`; attn_mask [L, S] or [B * H, L, S], key_padding_mask [S] or [B, S], bool or additive.
        query: [B, H, L, D].
        key: [B, H, S, D].
    """
    attention, padding = of["attn_mask"], of["key_padding_mask"]
    masks = []
    if attention is not None:
        masks.append(attention.unflatten(0, query.shape[:2]) if attention.dim() == 3 else attention[None, None])
    if padding is not None:
        masks.append(padding.view(-1, 1, 1, key.shape[2]).expand(-1, -1, query.shape[2], -1))
    added = [torch.zeros_like(m, dtype=query.dtype).masked_fill_(m, -torch.inf) if m.dtype == torch.bool else m for m in masks]
    return sum(added[1:], added[0]) if added else None
