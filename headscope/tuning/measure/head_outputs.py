"""What every head writes, under the full cache or under an option of its own: the input of the attention's output projection.

Nothing below a layer changes while its heads alone are compressed, and a layer's heads do not see each other. So one replay an
option, in which every layer is handed its recorded full-cache input, yields what *every* head of *every* layer writes when it
alone is compressed. The replay goes through the runtime's own cache, so heavy heads choose exactly as they do when generating.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import nn

from headscope.policy import Policy
from headscope.runtime import CompressedCache, compressed
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.replay import Replay


class HeadOutputs:
    """What heads write on the images of a replay.

    Needs a decoder with `layers`, each with `self_attn.o_proj` (Llama and its relatives): `can` says whether it is one.

    Args:
        replay: the images.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that heads keep at every option.

    Attributes:
        tuples: whether the decoder's layers return tuples; known once there are `inputs`.
    """

    def __init__(self, replay: Replay, stride: int, anchor: int = 0) -> None:
        self.replay, self.stride, self.anchor, self.tuples = replay, stride, anchor, False
        self._inputs: dict[int, list[torch.Tensor]] = {}

    @property
    def can(self) -> bool:
        """Whether the decoder is built as this needs it."""
        return projections(self.replay.model.decoder) is not None

    def inputs(self, number: int) -> list[torch.Tensor]:
        """Each layer's input under the full cache, [rows, P + N - 1, C], of the batch of that number."""
        if number not in self._inputs:
            found: list[torch.Tensor] = []
            handle = layers(self.replay)[0].register_forward_hook(self._note)
            try:
                with before(layers(self.replay), lambda layer, hidden: found.append(hidden)):
                    self.replay.full(self.replay.batches[number])
            finally:
                handle.remove()
            self._inputs[number] = found
        return self._inputs[number]

    def _note(self, _: nn.Module, __: tuple, output: object) -> None:
        self.tuples = isinstance(output, tuple)

    def forget(self, number: int) -> None:
        """Free the inputs of a batch."""
        self._inputs.pop(number, None)

    def under(self, number: int, option: Option) -> list[torch.Tensor]:
        """By layer what all heads of a batch write under `option`, [rows, N - 1, heads * D]."""
        replay, shape = self.replay, self.replay.model.shape
        policy = Policy.uniform(
            shape,
            window=option.window,
            heavy=option.heavy,
            decay=option.decay,
            anchor=self.anchor,
            stride=self.stride,
            prefix=replay.prefix,
            bits=option.bits,
        )
        batch, inputs = replay.batches[number], self.inputs(number)
        written: list[list[torch.Tensor]] = [[] for _ in range(shape.layers)]
        seen = [0] * shape.layers

        def hand_over(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            start, seen[layer] = seen[layer], seen[layer] + hidden.shape[1]
            return inputs[layer][:, start : seen[layer]]

        def keep(layer: int, heads: torch.Tensor) -> None:
            written[layer].append(heads)

        with (
            compressed(replay.model, policy),
            before(layers(replay), hand_over),
            before(_projections(replay), keep),
        ):
            rows, device = len(batch.prefix), replay.model.device
            cache = CompressedCache(policy, batch=rows, prefix=replay.prefix, dtype=replay.dtype, device=device)
            replay.run(batch, policy, cache)
        return [torch.cat(parts, 1)[:, replay.prefix :] for parts in written]

    def full(self, number: int) -> list[torch.Tensor]:
        """By layer what all heads of a batch write under the full cache, [rows, N - 1, heads * D]."""
        found: list[torch.Tensor] = []
        with before(_projections(self.replay), lambda layer, heads: found.append(heads[:, self.replay.prefix :])):
            self.replay.full(self.replay.batches[number])
        return found


@contextmanager
def before(modules: list[nn.Module] | nn.ModuleList, act: Callable[[int, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Call `act(index, first input)` before each module runs in this thread; a tensor returned takes the input's place."""
    thread = threading.get_ident()

    def hook(index: int) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict] | None]:
        def replace(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if threading.get_ident() != thread:
                return None
            if args:
                given = act(index, args[0])
                return None if given is None else ((given, *args[1:]), kwargs)
            given = act(index, kwargs["hidden_states"])
            return None if given is None else (args, {**kwargs, "hidden_states": given})

        return replace

    with ExitStack() as stack:
        for index, module in enumerate(modules):
            handle = module.register_forward_pre_hook(hook(index), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def layers(replay: Replay) -> nn.ModuleList:
    """The decoder's layers."""
    return cast(nn.ModuleList, replay.model.decoder.layers)


def projections(decoder: nn.Module) -> list[nn.Module] | None:
    """Each layer's output projection of the attention, or None where the decoder is built otherwise."""
    every = getattr(decoder, "layers", None)
    found = [getattr(getattr(layer, "self_attn", None), "o_proj", None) for layer in every or []]
    modules = [module for module in found if isinstance(module, nn.Module)]
    return modules if modules and len(modules) == len(found) else None


def _projections(replay: Replay) -> list[nn.Module]:
    found = projections(replay.model.decoder)
    assert found is not None
    return found
