"""Seeing the attention of modules that we never saw: by name of the module that computes it, with three ways to attach.

Decoders of transformers that use its attention interface are observed as in attention.py; ImageGPT computes attention in a
method of its own, which is replaced on the instance while the block lasts; everything else is seen where it calls
`scaled_dot_product_attention` or `multi_head_attention_forward` (`nn.MultiheadAttention`) of `torch.nn.functional`. Nothing is
patched globally: the interception is PyTorch's own mode, which belongs to one thread. What was given to `torch.compile` runs
as it was written while the block lasts, for compiled code calls none of these.
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

from headscope.models.attention import observe
from headscope.models.groups import Group, plain_groups
from headscope.models.multi_head import given, heads_of, mask_of

Named = Callable[[str, Group, bool], None]  # (name of the module, what it attends to, whether it hides later tokens)


@contextmanager
def attach(module: nn.Module, callback: Named) -> Iterator[None]:
    """Inside the block, `callback(name, group, causal)` is called for every attention that `module` computes, in this thread.

    All hooks come off when the block ends, also after an exception; no output changes.
    """
    names = _names(module)
    with ExitStack() as stack:
        stack.enter_context(as_written())
        observed: set[int] = set()
        for decoder in _decoders(module):
            by_number = {part.layer_idx: names[id(part)] for part in decoder.modules() if _computes(part, decoder)}
            observed |= {id(part) for part in decoder.modules() if _computes(part, decoder)}

            def show(number: int, groups: list[Group], by_number: dict[Any, str] = by_number) -> None:
                callback(by_number[number], groups[0], True)

            stack.enter_context(observe(decoder, show))
        for part in module.modules():
            if isinstance(part, ImageGPTAttention):
                stack.enter_context(_imagegpt(names[id(part)], part, callback))
        inside = stack.enter_context(_module_stack(module))
        stack.enter_context(_Interception(callback, inside, names, observed))
        yield


_eager_lock = threading.Lock()
_eager: dict[str, Any] = {"blocks": 0, "stance": None}


@contextmanager
def as_written() -> Iterator[None]:
    """Inside the block nothing that was given to `torch.compile` runs compiled. That holds for the process, so the blocks are
    counted: the last one that ends puts back what the first has found."""
    with _eager_lock:
        if not _eager["blocks"]:
            _eager["stance"] = torch.compiler.set_stance("force_eager")
            _eager["stance"].__enter__()
        _eager["blocks"] += 1
    try:
        yield
    finally:
        with _eager_lock:
            _eager["blocks"] -= 1
            if not _eager["blocks"]:
                _eager.pop("stance").__exit__(None, None, None)


def _names(module: nn.Module) -> dict[int, str]:
    """Name of every part, by identity; the wrapper of `torch.compile` adds nothing to it. The whole is called by its class."""
    wrapped = {id(part): name.replace("_orig_mod.", "").removesuffix("_orig_mod") for name, part in module.named_modules()}
    return {key: name.removesuffix(".") or type(getattr(module, "_orig_mod", module)).__name__ for key, name in wrapped.items()}


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


_replacing = threading.RLock()
_IMAGEGPT_METHODS = ("_attn", "_upcast_and_reordered_attn")


@contextmanager
def _imagegpt(name: str, part: ImageGPTAttention, callback: Named) -> Iterator[None]:
    """Inside the block, `callback` sees what this thread computes; the last block that ends puts the methods back."""
    thread = threading.get_ident()
    scaling = part.head_dim**-0.5 if part.scale_attn_weights else 1.0
    if part.scale_attn_by_inverse_layer_idx:
        scaling /= (part.layer_idx or 0) + 1

    def see(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> None:
        if threading.get_ident() == thread:
            visible = None if mask is None else _causal(mask, query)
            callback(name, plain_groups(query, key, visible, scaling, value)[0], True)

    with _replacing:
        watchers: list[Any] = vars(part).setdefault("_headscope_watchers", [])
        if not watchers:
            for method in _IMAGEGPT_METHODS:
                setattr(part, method, _shown(getattr(part, method), watchers))
        watchers.append(see)
    try:
        yield
    finally:
        with _replacing:
            watchers.remove(see)
            if not watchers:
                for attribute in (*_IMAGEGPT_METHODS, "_headscope_watchers"):
                    delattr(part, attribute)


def _shown(original: Callable[..., Any], watchers: list[Callable[..., None]]) -> Callable[..., Any]:
    """`original`, whose arguments are shown to all watchers first."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        for see in tuple(watchers):
            see(query, key, value, mask)
        return original(query, key, value, mask)

    return attend


def _causal(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, T, T]: the padding of an additive mask [B, 1, 1, T], and no later tokens."""
    length = query.shape[2]
    lower = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return (mask > torch.finfo(mask.dtype).min / 2) & lower


@contextmanager
def _module_stack(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that are running in this thread, the innermost last."""
    thread, running, handles = threading.get_ident(), list[nn.Module](), []

    def enter(part: nn.Module, *_: Any) -> None:
        if threading.get_ident() == thread:
            running.append(part)

    def leave(part: nn.Module, *_: Any) -> None:
        if threading.get_ident() == thread and running:
            running.pop()

    for part in module.modules():
        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


class _Interception(TorchFunctionMode):
    """Shows every call of PyTorch's attention functions, unless the module is observed already."""

    def __init__(self, callback: Named, running: list[nn.Module], names: dict[int, str], observed: set[int]) -> None:
        super().__init__()
        self.callback, self.running, self.names, self.observed = callback, running, names, observed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        show = {
            functional.scaled_dot_product_attention: self._show,
            functional.multi_head_attention_forward: self._show_multi_head,
        }.get(func)
        if show is not None and not any(id(part) in self.observed for part in self.running):
            with torch.no_grad():
                show(*args, **kwargs)
        return func(*args, **kwargs)

    def _tell(self, group: Group, causal: bool) -> None:
        self.callback(self.names[id(self.running[-1])] if self.running else "the module", group, causal)

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
        if query.dim() == 3:  # one head
            query, key, value = query[:, None], key[:, None], value[:, None]
        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[2], key.shape[2])
            attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())] if attn_mask.dim() != 3 else attn_mask[:, None]
        group = plain_groups(query, key, attn_mask, scaling, value)[0]
        self._tell(group, is_causal or _hides_later(group))

    def _show_multi_head(self, *args: Any, **kwargs: Any) -> None:
        of = given(*args, **kwargs)
        q, k, _ = heads_of(of)
        own_keys = of["bias_k"] is not None or of["add_zero_attn"] or of["static_k"] is not None
        altered = "keys of its own beside the tokens'" if own_keys else None
        group = plain_groups(q, k, mask_of(of, q, k), q.shape[3] ** -0.5, altered=altered)[0]
        self._tell(group, _hides_later(group))


def _hides_later(group: Group) -> bool:
    """Whether no query sees a key that comes after it."""
    if group.visible is None:
        return False
    return not bool(group.visible.triu(1 + group.k.shape[2] - group.q.shape[2]).any())
