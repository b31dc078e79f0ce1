"""Projecting: any proposal, scaled to the largest policy of its kind that a byte limit holds."""

from __future__ import annotations

import numpy as np
import torch

from headscope.errors import BudgetError
from headscope.policy.footprint import CacheSpec, Limit
from headscope.policy.policy import Policy


def project(
    weights_window: torch.Tensor,
    weights_heavy: torch.Tensor,
    limit: Limit,
    *,
    stride: int,
    anchor: int = 0,
    bits: int | torch.Tensor = 16,
    prompt: int | torch.Tensor = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale a proposal to the largest one that fits: window and heavy int32 [layers, kv_heads].

    All weights grow together, and each head's numbers are rounded down on the way; heads of a layer with equal weights
    stay equal, so no bucket is added. Where the next token of several groups comes at the same moment, the groups take
    it in the order of layers. The way is the same for every limit, so a larger one never gives a head fewer tokens, and what
    stays unused is less than the next group's step. A head with a heavy weight keeps at least one heavy token.

    Weights that are numbers of tokens already, fit, and leave less than the largest group's step unused are the answer, so
    projecting a projection changes nothing.

    Args:
        weights_window: [layers, kv_heads], in proportion to the tokens of each head's window.
        weights_heavy: [layers, kv_heads], in proportion to its heavy tokens, on the same scale.
        limit: what has to hold it.
        stride: tokens between two choices, whose buffer heads with heavy tokens need.
        anchor: first image tokens that each head keeps besides.
        bits: of a kept number, one number or uint8 [layers, kv_heads].
        prompt: 1 for the whole prompt, 0 for its first and last token, one number or uint8 [layers, kv_heads].

    Raises:
        BudgetError: even the start of the way does not fit.
    """
    spec, shape = limit.spec, limit.spec.shape
    ww = weights_window.double().clamp(min=0).numpy()
    wh = weights_heavy.double().clamp(min=0).numpy()
    most = shape.geometry.tokens - 1
    full = most / np.maximum(ww + wh, 1e-12)
    each, whole = (np.broadcast_to(np.asarray(value, dtype=np.int64), ww.shape) for value in (bits, prompt))

    def at(scale: float) -> tuple[np.ndarray, np.ndarray]:
        heavy = np.where(wh > 0, np.maximum(np.floor(np.minimum(scale, full) * wh + 1e-9), 1), 0).astype(np.int64)
        window = np.floor(np.minimum(scale, full) * ww + 1e-9).astype(np.int64)
        window = np.where((scale >= full) & (ww > 0), np.maximum(window, most - heavy), window)
        return window, heavy

    def cost(window: np.ndarray, heavy: np.ndarray) -> int:
        anchors = np.where(window + heavy >= most, 0, anchor)
        return int(spec.head_bytes(window, heavy, anchors, stride, each, whole).sum())

    room = limit.per_row
    if _whole(ww, wh, most) and 0 <= room - cost(*at(1.0)) < _largest_step(ww, wh, stride, spec, each):
        return _tensors(*at(1.0))
    if cost(*at(0.0)) > room:
        raise BudgetError(
            f"{limit.bytes:,} bytes are too few for stride {stride} and {anchor} anchors: the smallest policy of this kind "
            f"takes {cost(*at(0.0)) * spec.rows:,}."
        )
    high = float(full[(ww + wh) > 0].max(initial=0.0)) + 1.0
    if cost(*at(high)) <= room:
        return _tensors(*at(high))
    low = 0.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if cost(*at(middle)) <= room else (low, middle)
    window, heavy = at(low)
    after_window, after_heavy = at(high)
    for layer in range(shape.layers):
        moved = (window[layer] != after_window[layer]) | (heavy[layer] != after_heavy[layer])
        kinds = np.stack([ww[layer], wh[layer], each[layer], whole[layer]], 1)
        for kind in dict.fromkeys(tuple(kinds[h]) for h in np.flatnonzero(moved)):
            heads = (kinds == kind).all(1)
            tried_window, tried_heavy = window.copy(), heavy.copy()
            tried_window[layer, heads], tried_heavy[layer, heads] = after_window[layer, heads], after_heavy[layer, heads]
            if cost(tried_window, tried_heavy) > room:
                return _tensors(window, heavy)
            window, heavy = tried_window, tried_heavy
    return _tensors(window, heavy)


def _whole(window: np.ndarray, heavy: np.ndarray, most: int) -> bool:
    """Whether weights are numbers of tokens that a head can have."""
    return bool((window % 1 == 0).all() and (heavy % 1 == 0).all() and (window + heavy <= most).all())


def _largest_step(window: np.ndarray, heavy: np.ndarray, stride: int, spec: CacheSpec, bits: np.ndarray) -> int:
    """Most bytes by which a projection with these counts can fall short: a token more for every head of the largest group
    of equal heads in a layer, two where there are windows and heavy tokens."""
    sizes = []
    for layer in range(spec.shape.layers):
        for w, h, b in set(zip(window[layer], heavy[layer], bits[layer], strict=True)):
            heads = int(((window[layer] == w) & (heavy[layer] == h) & (bits[layer] == b)).sum())
            least, more = ((0, 1), (1, 2)) if h > 0 else ((0, 0), (1, 0))
            counts = np.array([least, more])
            size = spec.head_bytes(counts[:, 0], counts[:, 1], 0, stride, b)
            sizes.append(heads * int(size[1] - size[0]))
    return max(sizes)


def _tensors(window: np.ndarray, heavy: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(window.astype(np.int32)), torch.from_numpy(heavy.astype(np.int32))


def fit(
    window: torch.Tensor,
    heavy: torch.Tensor,
    limit: Limit,
    *,
    stride: int,
    anchor: int = 0,
    decay: float | torch.Tensor = 1.0,
    semantic_score: torch.Tensor | None = None,
    bits: int | torch.Tensor = 16,
    prompt: int | torch.Tensor = 1,
    score: int | torch.Tensor = 0,
) -> Policy:
    """The policy that `project` makes of two weights [layers, kv_heads].

    Args:
        window: see `project`.
        heavy: see `project`.
        limit: what has to hold it.
        stride: tokens between two choices of the heavy set.
        anchor: first image tokens that each head keeps.
        decay: of the score, one number or [layers, kv_heads]; heads without heavy tokens get 1, as theirs is never read.
        semantic_score: float32 [layers, kv_heads], noted in the policy.
        bits: of a kept number, one number or uint8 [layers, kv_heads].
        prompt: 1 for the whole prompt, 0 for its first and last token, one number or uint8 [layers, kv_heads].
        score: kind of score, a place in `BUILT_IN`, one number or uint8 [layers, kv_heads].

    Raises:
        BudgetError: it does not fit at any size.
    """
    kept_window, kept_heavy = project(window, heavy, limit, stride=stride, anchor=anchor, bits=bits, prompt=prompt)
    return Policy.uniform(
        limit.spec.shape,
        window=kept_window,
        heavy=kept_heavy,
        anchor=anchor,
        decay=torch.where(kept_heavy > 0, torch.as_tensor(decay, dtype=torch.float32), 1.0),
        stride=stride,
        prefix=limit.spec.prefix,
        semantic_score=semantic_score,
        bits=bits,
        prompt=prompt,
        score=torch.where(kept_heavy > 0, torch.as_tensor(score, dtype=torch.uint8), 0),
    )
