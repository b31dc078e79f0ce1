"""The one attention and mask function that tracing and the compressed cache plug into.

Both go through the attention interface of transformers: a name is set in the decoder's configuration for as long as a
`with` block lasts, nothing is patched, and the rest of the model (a vision tower, say) keeps its own attention.

`observe` wraps whatever attention the decoder has: the original function computes the output, so logits are bit-identical,
and a callback sees the queries and keys. `attend_through_cache` hands the attention to the cache layer that `update()`
has just left on the keys.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager
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
_OBSERVERS = "_headscope_observers"
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
        v: [B, hk, S, D], of a plain group only.
    """

    heads: list[int]
    q: torch.Tensor
    k: torch.Tensor
    key_positions: torch.Tensor
    query_positions: torch.Tensor
    visible: torch.Tensor | None
    scaling: float
    v: torch.Tensor | None = None


Callback = Callable[[int, list[Group]], None]
Answer = Callable[[int, list[Group]], torch.Tensor | None]


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
    """Let the decoder use the attention registered as `name` inside the block, and its own again afterwards.

    A decoder that is being observed stays so.
    """
    config: Any = decoder.config
    before = config._attn_implementation
    config._attn_implementation = _register_observed(name) if str(before).startswith(_OBSERVED) else name
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


def observe(decoder: nn.Module, callback: Callback, layers: Container[int] | None = None) -> AbstractContextManager[None]:
    """Inside the block every attention layer of `decoder` calls `callback(layer, groups)` once a forward.

    Nests, and several threads may observe one decoder: each is called for its own forwards only. The decoder is as before on
    exit, also after an exception. What the callback does changes no output.

    Args:
        layers: numbers of those to observe, None for all.
    """
    return _observing(decoder, _Entry(callback, threading.get_ident()), layers)


def answer(decoder: nn.Module, callback: Answer, layers: Container[int] | None = None) -> AbstractContextManager[None]:
    """As `observe`, for a callback that has computed the attention anyway and hands its output on, so that it is not computed
    twice: [B, T', Hq, D] of the last T' of T queries, or None. The first T - T', which must see only each other, are
    computed as usual. Outputs are those of the decoder's own attention but for rounding.
    """
    return _observing(decoder, _Entry(callback, threading.get_ident(), answers=True), layers)


@contextmanager
def _observing(decoder: nn.Module, entry: _Entry, layers: Container[int] | None) -> Iterator[None]:
    attentions = [module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "config")]
    chosen = [module for module in attentions if layers is None or module.layer_idx in layers]
    with _switching:
        _begin_observing(decoder)
        for module in chosen:
            setattr(module, _CALLBACKS, (*getattr(module, _CALLBACKS, ()), entry))
    try:
        yield
    finally:
        with _switching:
            for module in chosen:
                left = tuple(other for other in getattr(module, _CALLBACKS) if other is not entry)
                if left:
                    setattr(module, _CALLBACKS, left)
                else:
                    delattr(module, _CALLBACKS)
            _end_observing(decoder)


@dataclass(frozen=True, eq=False)
class _Entry:
    """An observer, the thread whose forwards it is to see, and whether what it returns is the layer's output."""

    callback: Callback | Answer
    thread: int
    answers: bool = False


_switching = threading.RLock()


def _begin_observing(decoder: nn.Module) -> None:
    """The first observer switches the attention, the last one (`_end_observing`) switches it back."""
    config: Any = decoder.config
    count, original = getattr(decoder, _OBSERVERS, (0, None))
    if count == 0:
        original = config._attn_implementation
        name = original or "eager"
        config._attn_implementation = name if name.startswith(_OBSERVED) else _register_observed(name)
    setattr(decoder, _OBSERVERS, (count + 1, original))


def _end_observing(decoder: nn.Module) -> None:
    config: Any = decoder.config
    count, original = getattr(decoder, _OBSERVERS)
    if count > 1:
        setattr(decoder, _OBSERVERS, (count - 1, original))
        return
    config._attn_implementation = original
    delattr(decoder, _OBSERVERS)


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
            mine = threading.get_ident()
            entries = [entry for entry in getattr(module, _CALLBACKS, ()) if entry.thread == mine]
            usual = _function(original, module)
            output = None
            if entries:
                layer: CacheLayer | None = getattr(key, _HANDLE, None)
                scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
                if layer is None:
                    show = plain_groups(query, key, attention_mask, scaling, value)
                else:
                    show = layer.groups(query, attention_mask, scaling)
                for entry in entries:
                    found = entry.callback(cast(int, module.layer_idx), show)
                    output = found if entry.answers else output
            if output is None:
                return usual(module, query, key, value, attention_mask, **kwargs)
            first = query.shape[2] - output.shape[1]
            if first:
                few = (query[:, :, :first], key[:, :, :first], value[:, :, :first])
                mask = None if attention_mask is None else attention_mask[..., :first, :first]
                output = torch.cat([usual(module, *few, mask, **kwargs)[0], output], 1)
            return output, None

        ALL_ATTENTION_FUNCTIONS.register(name, observed)
        if original in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    return name


def _function(name: str, module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention registered as `name`; "eager" is a function of the module's own file."""
    if name in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[name]
    return sys.modules[type(module).__module__].eager_attention_forward


def plain_groups(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, value: torch.Tensor | None = None
) -> list[Group]:
    """One group of all heads, for keys [B, H, S, D] of which the last T are the queries' own tokens."""
    visible = None
    if mask is not None:
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        visible = visible[..., : key.shape[2]]
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
        )
    ]
