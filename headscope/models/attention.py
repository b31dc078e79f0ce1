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
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from headscope.errors import CacheError
from headscope.models.cache_name import cache_name
from headscope.models.groups import Group, plain_groups

THROUGH_CACHE = "headscope_compressed"
_OBSERVED = "headscope_observed_"
_CALLBACKS = "_headscope_callbacks"
_HANDLE = "_headscope_layer"

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


@dataclass
class _Switch:
    """How the attention of one configuration is switched while blocks last, in whatever order they end.

    Attributes:
        original: the configuration's own attention.
        observers: `observe` and `answer` blocks that are open.
        threads: by thread, the `through_cache` blocks that it has open.
        chunking: those of them in which a prompt may come in chunks.
    """

    original: str | None
    observers: int = 0
    threads: Counter[int] = field(default_factory=Counter)
    chunking: int = 0

    def name(self) -> str | None:
        """The attention that is in force."""
        through = THROUGH_CACHE if self.threads.total() else self.original
        return _register_observed(through or "eager") if self.observers else through


_switching = threading.RLock()
_switches: dict[int, _Switch] = {}  # by identity of a configuration, which its decoder keeps alive


@contextmanager
def _switched(config: Any, *, observers: int = 0, threads: Sequence[int] = (), chunking: int = 0) -> Iterator[None]:
    """Count a block in; the first switches the attention of `config`, the last one that ends switches it back."""
    with _switching:
        switch = _switches.setdefault(id(config), _Switch(config._attn_implementation))
        switch.observers += observers
        switch.chunking += chunking
        switch.threads.update(threads)
        config._attn_implementation = switch.name()
    try:
        yield
    finally:
        with _switching:
            switch.observers -= observers
            switch.chunking -= chunking
            switch.threads.subtract(threads)
            config._attn_implementation = switch.name()
            if not switch.observers and not switch.threads.total():
                del _switches[id(config)]


def through_cache(decoder: nn.Module, *, may_chunk: bool = False) -> AbstractContextManager[None]:
    """Inside the block the decoder attends, in this thread, through the cache that it is given; see `attend_through_cache`.

    Blocks nest, several threads may have one open, and the decoder's own attention is back when the last of them ends. A
    decoder that is being observed stays so. Threads without a block go on with the decoder's own attention.

    Args:
        decoder: the transformer.
        may_chunk: whether somebody else feeds it, who may bring a prompt in several calls.
    """
    return _switched(decoder.config, threads=[threading.get_ident()], chunking=int(may_chunk))


def goes_through_cache() -> bool:
    """Whether a block of `through_cache` is open in this thread, of whatever decoder."""
    return any(switch.threads[threading.get_ident()] for switch in list(_switches.values()))


def may_chunk_prompts(attention: nn.Module) -> bool:
    """Whether the prompt may come in several calls of this attention layer."""
    switch = _switch_of(attention)
    return switch is not None and switch.chunking > 0


def _switch_of(module: nn.Module) -> _Switch | None:
    """Of a decoder or one of its attention layers, which share their configuration."""
    return _switches.get(id(getattr(module, "config", None)))


def _foreign(switch: _Switch | None) -> str | None:
    """The decoder's own attention, for a thread that has no `through_cache` block open; None for one that has."""
    if switch is None:  # a copy that was made inside a block, and has no attention of its own
        return "sdpa"
    return None if switch.threads[threading.get_ident()] else switch.original or "eager"


def attend_through_cache(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention function of the compressed runtime: [B, Hq, T, D] -> [B, T, Hq, D].

    Raises:
        CacheError: the keys come from a cache that is not headscope's.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: CacheLayer | None = getattr(key, _HANDLE, None)
    original = _foreign(_switch_of(module))
    if layer is not None:
        if original is not None and attention_mask is not None and attention_mask.dim() != 4:
            raise CacheError(
                f"A CompressedCache was called outside of `with headscope.compressed(...)`, with the mask of {original} "
                "attention, which it can't read; call the model in the thread that opened the block."
            )
        return layer.attend(module, query, attention_mask, scale), None
    if original is not None:
        return _function(original, module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if key.shape[2] != query.shape[2]:
        raise CacheError(
            "Inside `with headscope.compressed(...)` the cache must be a headscope CompressedCache, found another one: "
            f"pass `{cache_name()}=CompressedCache(policy)`."
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **kwargs)


def _mask_through_cache(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """What the cache checks later calls by, and sees padding in; threads without a block get the mask of their attention."""
    original = _foreign(_switches.get(id(kwargs.get("config"))))
    return sdpa_mask(*args, **kwargs) if original is None else ALL_MASK_ATTENTION_FUNCTIONS[original](*args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(THROUGH_CACHE, attend_through_cache)
ALL_MASK_ATTENTION_FUNCTIONS.register(THROUGH_CACHE, _mask_through_cache)


def observe(decoder: nn.Module, callback: Callback, layers: Container[int] | None = None) -> AbstractContextManager[None]:
    """Inside the block every attention layer of `decoder` calls `callback(layer, groups)` once a forward.

    Nests, and several threads may observe one decoder: each is called for its own forwards only. The decoder is as before on
    exit, also after an exception. What the callback does changes no output.

    Args:
        decoder: a transformer of the transformers library, whose layers attend through its attention interface.
        callback: takes the number of a layer and its heads, by groups that share their keys.
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
    with _switched(decoder.config, observers=1):
        with _switching:
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


def is_observed(decoder: nn.Module) -> bool:
    """Whether a block of `observe` or `answer` is open on the decoder, in whatever thread."""
    switch = _switch_of(decoder)
    return switch is not None and switch.observers > 0


@dataclass(frozen=True, eq=False)
class _Entry:
    """An observer, the thread whose forwards it is to see, and whether what it returns is the layer's output."""

    callback: Callback | Answer
    thread: int
    answers: bool = False


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
                    show = plain_groups(query, key, attention_mask, scaling, value, _altered(kwargs))
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


def _altered(kwargs: Mapping[str, Any]) -> str | None:
    """What transformers' attention functions are asked to do that queries, keys and mask do not tell."""
    if kwargs.get("softcap") is not None:
        return "a soft cap on its logits"
    return None if kwargs.get("s_aux") is None else "attention sinks"
