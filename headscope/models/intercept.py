"""Seeing the attention of modules that we never saw: by name of the module that computes it, with three ways to attach.

Decoders of transformers that use its attention interface are observed as in attention.py; ImageGPT computes attention in a
method of its own, which is replaced on the instance while the block lasts; everything else is seen where it calls
`torch.nn.functional.scaled_dot_product_attention`. Nothing is patched globally: the interception is PyTorch's own mode, which
belongs to one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTAttention

from headscope.models.attention import Group, observe, plain_groups

Named = Callable[[str, Group, bool], None]  # (name of the module, what it attends to, whether it hides later tokens)


@contextmanager
def attach(module: nn.Module, callback: Named) -> Iterator[None]:
    """Inside the block, `callback(name, group, causal)` is called for every attention that `module` computes, in this thread.

    All hooks come off when the block ends, also after an exception; no output changes.
    """
    names = {id(part): name for name, part in module.named_modules()}
    with ExitStack() as stack:
        observed: set[int] = set()
        for decoder in _decoders(module):
            by_number = {
                part.layer_idx: names[id(part)] or type(part).__name__ for part in decoder.modules() if _computes(part, decoder)
            }
            observed |= {id(part) for part in decoder.modules() if _computes(part, decoder)}

            def show(number: int, groups: list[Group], by_number: dict[Any, str] = by_number) -> None:
                callback(by_number[number], groups[0], True)

            stack.enter_context(observe(decoder, show))
        for name, part in module.named_modules():
            if isinstance(part, ImageGPTAttention):
                stack.enter_context(_imagegpt(name, part, callback))
        inside = stack.enter_context(_module_stack(module, names))
        stack.enter_context(_Interception(callback, inside, observed))
        yield


def _decoders(module: nn.Module) -> list[PreTrainedModel]:
    """The outermost models that own a configuration which attention layers of theirs share."""
    found: list[PreTrainedModel] = []
    for part in module.modules():
        taken = any(part.config is other.config for other in found) if isinstance(part, PreTrainedModel) else True
        if not taken and getattr(part, "_supports_attention_backend", False):
            assert isinstance(part, PreTrainedModel)
            if any(_computes(inner, part) for inner in part.modules()):
                found.append(part)
    return found


def _computes(part: nn.Module, decoder: nn.Module) -> bool:
    return getattr(part, "layer_idx", None) is not None and getattr(part, "config", None) is decoder.config


@contextmanager
def _imagegpt(name: str, part: ImageGPTAttention, callback: Named) -> Iterator[None]:
    thread = threading.get_ident()
    replaced = {method: getattr(part, method) for method in ("_attn", "_upcast_and_reordered_attn")}
    scaling = part.head_dim**-0.5 if part.scale_attn_weights else 1.0
    if part.scale_attn_by_inverse_layer_idx:
        scaling /= (part.layer_idx or 0) + 1

    def seen(original: Callable[..., Any]) -> Callable[..., Any]:
        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
            if threading.get_ident() == thread:
                callback(
                    name, plain_groups(query, key, None if mask is None else _causal(mask, query), scaling, value)[0], True
                )
            return original(query, key, value, mask)

        return attend

    for method, original in replaced.items():
        setattr(part, method, seen(original))
    try:
        yield
    finally:
        for method in replaced:
            delattr(part, method)


def _causal(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, T, T]: the padding of an additive mask [B, 1, 1, T], and no later tokens."""
    length = query.shape[2]
    lower = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return (mask > torch.finfo(mask.dtype).min / 2) & lower


@contextmanager
def _module_stack(module: nn.Module, names: dict[int, str]) -> Iterator[list[nn.Module]]:
    """The modules that are running in this thread, the innermost last."""
    thread, running, handles = threading.get_ident(), list[nn.Module](), []

    def enter(part: nn.Module, *_: Any) -> None:
        if threading.get_ident() == thread:
            running.append(part)

    def leave(part: nn.Module, *_: Any) -> None:
        if threading.get_ident() == thread and running:
            running.pop()

    for part in module.modules():
        part._headscope_name = names[id(part)] or type(module).__name__  # type: ignore[assignment]
        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
        for part in module.modules():
            del part._headscope_name


class _Interception(TorchFunctionMode):
    """Shows every call of scaled_dot_product_attention, unless the module is observed already."""

    def __init__(self, callback: Named, running: list[nn.Module], observed: set[int]) -> None:
        super().__init__()
        self.callback, self.running, self.observed = callback, running, observed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and not any(id(part) in self.observed for part in self.running):
            self._show(*args, **kwargs)
        return func(*args, **kwargs)

    def _show(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        name = self.running[-1]._headscope_name if self.running else "the module"
        if query.dim() == 3:  # one head
            query, key, value = query[:, None], key[:, None], value[:, None]
        with torch.no_grad():
            scaling = query.shape[-1] ** -0.5 if scale is None else scale
            causal = is_causal
            if attn_mask is not None:
                seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
                seen = seen.expand(*seen.shape[:-2], query.shape[2], key.shape[2])
                attn_mask = seen[None, None] if seen.dim() == 2 else seen[:, None] if seen.dim() == 3 else seen
                causal = causal or not bool(attn_mask.triu(1 + key.shape[2] - query.shape[2]).any())
            self.callback(str(name), plain_groups(query, key, attn_mask, scaling, value)[0], causal)
