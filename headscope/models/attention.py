"""The one attention and mask function that tracing and the compressed cache plug into.

Both go through the attention interface of transformers: a name is set in the decoder's configuration for as long as a
`with` block lasts, nothing is patched, and the rest of the model (a vision tower, say) keeps its own attention.

`observe` wraps whatever attention the decoder has: the original function computes the output, so logits are bit-identical,
and a callback sees the queries and keys. `attend_through_cache` hands the attention to the cache layer that `update()`
has just left on the keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from headscope.errors import CacheError

THROUGH_CACHE = "headscope_compressed"
_OBSERVED = "headscope_observed_"
_CALLBACKS = "_headscope_callbacks"
_HANDLE = "_headscope_layer"


@dataclass(frozen=True)
class Group:
    """Heads of one layer that share their keys: all heads without a cache or with a plain one, a bucket otherwise.

    Attributes:
        heads: query heads of this group, in the order of q; query head i uses key head i // (hq // hk).
        q: [B, hq, T, D], k: [B, hk, S, D], rotary embedding applied.
        key_positions: int [1 or B, 1 or hk, S], absolute (prefix 0 .. P-1 with its padding, image token t at P + t), -1
            where a slot is empty.
        query_positions: int [T], absolute.
        visible: bool [1 or B, 1 or hk, 1 or T, S] or None; a key is seen if visible, at a position, and not after the query.
        scaling: the factor on q @ k.
    """

    heads: list[int]
    q: torch.Tensor
    k: torch.Tensor
    key_positions: torch.Tensor
    query_positions: torch.Tensor
    visible: torch.Tensor | None
    scaling: float


Callback = Callable[[int, list[Group]], None]


class CacheLayer(Protocol):
    """A cache layer that computes its own attention."""

    def attend(self, module: nn.Module, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
        """query [B, Hq, T, D] -> output [B, T, Hq, D]."""
        ...

    def groups(self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> list[Group]:
        """What the query is about to attend to, for an observer."""
        ...


def leave_handle(keys: torch.Tensor, layer: CacheLayer) -> torch.Tensor:
    """Mark the keys that `update()` returns, so that the attention function finds their layer."""
    setattr(keys, _HANDLE, layer)
    return keys


@contextmanager
def implementation(decoder: nn.Module, name: str) -> Iterator[None]:
    """Let the decoder use the attention registered as `name` inside the block, and its own again afterwards."""
    config: Any = decoder.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend_through_cache(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of the compressed runtime: [B, Hq, T, D] -> [B, T, Hq, D].

    Raises:
        CacheError: the keys come from a cache that is not headscope's.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: CacheLayer | None = getattr(key, _HANDLE, None)
    if layer is not None:
        return layer.attend(module, query, attention_mask, scale), None
    if key.shape[2] != query.shape[2]:
        raise CacheError(
            "Inside `with headscope.compressed(...)` the cache must be a headscope CompressedCache, found another one: "
            "pass `past_key_values=CompressedCache(policy)`."
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **kwargs)


def _mask_of_prefix(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask of the first call; later the cache knows better which slot may be seen."""
    queries = kwargs["q_length"] if "q_length" in kwargs else len(kwargs["cache_position"])
    return sdpa_mask(*args, **kwargs) if queries == kwargs["kv_length"] else None


ALL_ATTENTION_FUNCTIONS.register(THROUGH_CACHE, attend_through_cache)
ALL_MASK_ATTENTION_FUNCTIONS.register(THROUGH_CACHE, _mask_of_prefix)


@contextmanager
def observe(decoder: nn.Module, callback: Callback) -> Iterator[None]:
    """Inside the block every attention layer of `decoder` calls `callback(layer, groups)` once a forward.

    Nests; the decoder is as before on exit, also after an exception. What the callback does changes no output.
    """
    config: Any = decoder.config
    original = config._attn_implementation or "eager"
    name = original if original.startswith(_OBSERVED) else _register_observed(original)
    attentions = [module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "config")]
    for module in attentions:
        setattr(module, _CALLBACKS, (*getattr(module, _CALLBACKS, ()), callback))
    try:
        with implementation(decoder, name):
            yield
    finally:
        for module in attentions:
            left = getattr(module, _CALLBACKS)[:-1]
            if left:
                setattr(module, _CALLBACKS, left)
            else:
                delattr(module, _CALLBACKS)


def _register_observed(original: str) -> str:
    """Register, once a process, an observed twin of an attention implementation and give it the same mask function."""
    name = _OBSERVED + original
    if name not in ALL_ATTENTION_FUNCTIONS:

        def observed(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            **kwargs: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            callbacks: tuple[Callback, ...] = getattr(module, _CALLBACKS, ())
            if callbacks:
                layer: CacheLayer | None = getattr(key, _HANDLE, None)
                scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
                if layer is None:
                    show = plain_groups(query, key, attention_mask, scaling)
                else:
                    show = layer.groups(query, attention_mask, scaling)
                for callback in callbacks:
                    callback(cast(int, module.layer_idx), show)
            return _function(original, module)(module, query, key, value, attention_mask, **kwargs)

        ALL_ATTENTION_FUNCTIONS.register(name, observed)
        if original in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    return name


def _function(name: str, module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention registered as `name`; "eager" is a function of the module's own file."""
    if name in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[name]
    return sys.modules[type(module).__module__].eager_attention_forward


def plain_groups(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> list[Group]:
    """One group of all heads, for keys [B, H, S, D] of which the last T are the queries' own tokens."""
    visible = None
    if mask is not None:
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        visible = visible[..., : key.shape[2]]
    slots, queries = key.shape[2], query.shape[2]
    positions = torch.arange(slots, device=key.device)
    # Without a mask the keys are just the tokens so far. A static cache has slots for tokens to come, and then a mask.
    at = positions[slots - queries :]
    if visible is not None:
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
        )
    ]
