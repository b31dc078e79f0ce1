"""Where a decoder's heads write, found by watching two tokens go through it: no family's names are looked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headscope.models import Group, ImageModel, observe


@dataclass(frozen=True)
class Sites:
    """Modules of a decoder, a layer each.

    Attributes:
        blocks: the outermost that belong to one layer alone: nothing in one but its heads and what follows looks at its input.
        projections: the output projections of the attention: what goes into one is what the heads write, side by side.
        tuples: whether blocks return tuples.
        whole_rows: whether modules see rows of all tokens so far, the padding behind; else the new tokens alone.
    """

    blocks: list[nn.Module]
    projections: list[nn.Module]
    tuples: bool
    whole_rows: bool


@torch.inference_mode()
def find_sites(model: ImageModel) -> Sites | None:
    """The sites of a model's decoder; None where heads do not write into a matrix that is a module's, or one not reached so.

    Args:
        model: the model.
    """
    shape, watch = model.shape, _Watch(model.shape.query_heads * model.shape.head_dim)
    codes = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    with watch.on(model.decoder), observe(model.decoder, watch.attended):
        model.forward(model.embed_tokens(codes), None, None)
    every = range(shape.layers)
    if sorted(watch.stacks) != list(every) or sorted(watch.projections) != list(every):
        return None
    projections = [watch.projections[layer] for layer in every]
    blocks = _blocks([watch.stacks[layer] for layer in every])
    if any(len(set(map(id, modules))) < shape.layers for modules in (projections, blocks)):  # layers share one
        return None
    kinds = {watch.kinds.get(id(block)) for block in blocks}
    if len(kinds) != 1 or None in kinds:
        return None
    whole = bool(getattr(model.decoder, "whole_rows", False))
    return Sites(blocks, projections, kinds == {tuple}, whole)


def _blocks(stacks: list[list[nn.Module]]) -> list[nn.Module]:
    """The first module down from the decoder that is another one in every layer; of one layer the innermost."""
    for level in zip(*stacks, strict=False):
        if len(stacks) > 1 and len(set(map(id, level))) == len(stacks):
            return list(level)
    return [stack[-1] for stack in stacks]


class _Watch:
    """What runs, in this thread: the modules around each layer's attention, and the first matrix behind it.

    Args:
        width: numbers of all heads of a layer.
    """

    def __init__(self, width: int) -> None:
        self.width, self.thread = width, threading.get_ident()
        self.running: list[nn.Module] = []
        self.waiting: int | None = None  # the layer whose projection has not come yet
        self.stacks: dict[int, list[nn.Module]] = {}
        self.projections: dict[int, nn.Module] = {}
        self.kinds: dict[int, type] = {}  # what modules return that take hidden states, by their id

    @contextmanager
    def on(self, decoder: nn.Module) -> Iterator[None]:
        """Watch a decoder."""
        with ExitStack() as stack:
            for module in decoder.modules():
                stack.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            yield

    def attended(self, layer: int, _: list[Group]) -> None:
        """See `observe`."""
        self.stacks[layer], self.waiting = list(self.running), layer

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self.thread:
            return
        self.running.append(module)
        given = args[0] if args else None
        matrix = any(parameter.dim() == 2 for parameter in module.parameters(recurse=False))
        if self.waiting is not None and matrix:
            if isinstance(given, torch.Tensor) and given.shape[-1] == self.width:
                self.projections[self.waiting] = module
            self.waiting = None

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: object) -> None:
        if threading.get_ident() != self.thread:
            return
        self.running.pop()
        if any(True for _ in module.parameters()):  # it had its own matrix, though not as a module
            self.waiting = None
        first = output[0] if isinstance(output, tuple) and output else output
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(first, torch.Tensor) and isinstance(given, torch.Tensor) and first.shape == given.shape:
            self.kinds[id(module)] = tuple if isinstance(output, tuple) else torch.Tensor
