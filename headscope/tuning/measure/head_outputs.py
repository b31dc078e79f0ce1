"""What every head writes, under the full cache or under an option of its own: the input of the attention's output projection.

Nothing below a layer changes while its heads alone are compressed, and a layer's heads do not see each other. So one replay an
option, in which every layer is handed its recorded full-cache input, yields what *every* head of *every* layer writes when it
alone is compressed. The replay goes through the runtime's own cache, so heavy heads choose exactly as they do when generating.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from headscope.policy import Policy
from headscope.runtime import CompressedCache, compressed
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.replay import Batch, Replay
from headscope.tuning.measure.sites import Sites, find_sites


class HeadOutputs:
    """What heads write on the images of a replay.

    Needs a decoder whose heads write into a matrix that is a module (see `find_sites`): `can` says whether it is one.

    Args:
        replay: the images.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that heads keep at every option.
    """

    def __init__(self, replay: Replay, stride: int, anchor: int = 0) -> None:
        self.replay, self.stride, self.anchor = replay, stride, anchor
        self._sites = find_sites(replay.model)
        self._inputs: dict[int, list[torch.Tensor]] = {}

    @property
    def can(self) -> bool:
        """Whether the decoder is built as this needs it."""
        return self._sites is not None

    @property
    def sites(self) -> Sites:
        """Where heads write, of a decoder that `can`."""
        assert self._sites is not None
        return self._sites

    def inputs(self, number: int) -> list[torch.Tensor]:
        """Each block's input under the full cache, [rows, P + N - 1, C], of the batch of that number."""
        if number not in self._inputs:
            found: list[torch.Tensor] = []
            with before(self.sites.blocks, lambda layer, hidden: found.append(hidden)):
                self.replay.full(self.replay.batches[number])
            self._inputs[number] = found
        return self._inputs[number]

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
            prompt=option.prompt,
            score=option.score,
        )
        policy = replay.completed(policy)
        batch, inputs = replay.batches[number], self.inputs(number)
        written: list[list[torch.Tensor]] = [[] for _ in range(shape.layers)]
        places, whole = image_places(replay, batch, self.sites), self.sites.whole_rows
        seen, kept = [0] * shape.layers, [0] * shape.layers

        def hand_over(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            start = 0 if whole else seen[layer]
            seen[layer] = start + hidden.shape[1]
            return inputs[layer][:, start : seen[layer]]

        def keep(layer: int, heads: torch.Tensor) -> None:
            if whole:  # of which the new ones are taken
                done, kept[layer] = kept[layer], max(heads.shape[1] - replay.prefix, 0)
                heads = of_image(heads, places[:, done : kept[layer]])
            written[layer].append(heads)

        with (
            compressed(replay.model, policy),
            before(self.sites.blocks, hand_over),
            before(self.sites.projections, keep),
        ):
            rows, device = len(batch.prefix), replay.model.device
            cache = CompressedCache(policy, batch=rows, prefix=replay.prefix, dtype=replay.dtype, device=device)
            replay.run(batch, policy, cache)
        return [torch.cat(parts, 1)[:, 0 if whole else replay.prefix :] for parts in written]

    def full(self, number: int) -> list[torch.Tensor]:
        """By layer what all heads of a batch write under the full cache, [rows, N - 1, heads * D]."""
        found: list[torch.Tensor] = []
        batch = self.replay.batches[number]
        places = image_places(self.replay, batch, self.sites)
        with before(self.sites.projections, lambda layer, heads: found.append(of_image(heads, places))):
            self.replay.full(batch)
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


def image_places(replay: Replay, batch: Batch, sites: Sites) -> torch.Tensor:
    """Where image tokens 0 .. N - 2 stand in what modules see: int64 [rows, N - 1].

    Behind the prefix and its padding, or, in whole rows, behind the prefix without it.

    Args:
        replay: the images.
        batch: some of them.
        sites: of the decoder.
    """
    prefix = batch.mask[:, : replay.prefix]
    ahead = prefix.sum(1) if sites.whole_rows else prefix.new_full((len(prefix),), replay.prefix)
    return ahead[:, None] + torch.arange(batch.tokens.shape[1], device=ahead.device)


def of_image(seen: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of what modules see, [rows, T, C], the places int64 [rows, n] -> [rows, n, C]."""
    return seen.gather(1, places[..., None].expand(-1, -1, seen.shape[2]))
