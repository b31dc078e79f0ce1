"""Groups: what heads of one layer are about to attend to, as an observer sees it, with or without a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# An additive mask hides a key by numbers below this: e^-10000 is 0 in every dtype, and no bias of positions goes so far.
HIDES_BELOW = -1e4


@dataclass(frozen=True)
class Group:
    """Heads of one layer that share their keys: all heads without a cache or with a plain one, a bucket otherwise.

    Attributes:
        heads: query heads of this group, in the order of q; query head i uses key head i // (hq // hk).
        q: [B, hq, T, D], queries, rotary embedding applied.
        k: [B, hk, S, D], keys, rotary embedding applied.
        key_positions: int [1 or B, 1 or hk, S], absolute (prefix 0 .. P-1 with its padding, image token t at P + t), -1
            where a slot is empty.
        query_positions: int [T], absolute.
        visible: bool [1 or B, 1 or hk, 1 or T, S] or None; a key is seen if visible, at a position, and not after the query.
        scaling: the factor on q @ k.
        v: [B, hk, S, D], values, of a plain group only.
        bias: [1 or B, 1 or hq, T, S] or None, what the module adds to scaling * q @ k (ALiBi, relative positions).
        altered: what the module does to its attention beside all this (a soft cap, sinks), in a few words; None: nothing.
    """

    heads: list[int]
    q: torch.Tensor
    k: torch.Tensor
    key_positions: torch.Tensor
    query_positions: torch.Tensor
    visible: torch.Tensor | None
    scaling: float
    v: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    altered: str | None = None


def split_mask(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A mask, bool or additive -> what may be seen, bool, and the finite numbers that are added to the logits, or None."""
    if mask.dtype == torch.bool:
        return mask, None
    seen = mask > HIDES_BELOW
    bias = mask.masked_fill(~seen, 0.0)
    return seen, bias if bool(bias.any()) else None


def plain_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    value: torch.Tensor | None = None,
    altered: str | None = None,
) -> list[Group]:
    """One group of all heads, for keys [B, H, S, D] of which the last T are the queries' own tokens."""
    visible, bias = (None, None) if mask is None else split_mask(mask[..., : key.shape[2]])
    slots, queries = key.shape[2], query.shape[2]
    positions = torch.arange(slots, device=key.device)
    # Without a mask the keys are just the tokens so far. A static cache has slots for tokens to come, and then a mask.
    at = positions[slots - queries :]
    if visible is not None and slots > queries:
        seen = visible.any(0).any(0)  # [T, S]
        last = torch.where(seen, positions, -1).amax(-1)
        at = torch.where(last >= 0, last, at)
    return [
        Group(
            heads=list(range(query.shape[1])),
            q=query,
            k=key,
            key_positions=positions[None, None],
            query_positions=at,
            visible=visible,
            scaling=scaling,
            v=value,
            bias=bias,
            altered=altered,
        )
    ]
