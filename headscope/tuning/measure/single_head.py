"""The loss of one head alone, without running the whole image through the cache for each head.

While one head of layer l is compressed and everything else is full,

- nothing below layer l changes, and a layer's heads do not see each other: what head h writes under an option depends
  only on the layer's input under the full cache. So one replay per option, in which every layer is handed its recorded
  full-cache input, yields what *every* head of *every* layer writes when it alone is compressed;
- from layer l on, one parallel call under the full cache with that head's output put in its place gives the loss.

The replay goes through the runtime's own cache, so heavy heads choose exactly as they do when generating. A test holds the
result equal to `Replay.measure` of the policy that compresses only that head.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from headscope.policy import Policy
from headscope.tuning.measure.head_outputs import HeadOutputs, before, image_places
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.replay import Batch, Replay


def full_policy(replay: Replay, stride: int) -> Policy:
    """Every head keeps everything: the base that single heads deviate from."""
    shape = replay.model.shape
    return Policy.uniform(shape, window=shape.geometry.tokens - 1, stride=stride, prefix=replay.prefix)


def alone_policy(
    replay: Replay, layer: int, kv_heads: int | Sequence[int], option: Option, stride: int, anchor: int = 0
) -> Policy:
    """One head, or several of one layer, have `option` and the first `anchor` tokens, all others keep everything.

    Args:
        replay: whose model the policy is for.
        layer: of these heads.
        kv_heads: number of the KV head, or of several.
        option: what they keep.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that they keep besides.
    """
    full = full_policy(replay, stride)
    tensors: dict[str, Any] = {}
    for name, value in {**vars(option), "anchor": anchor}.items():
        tensors[name] = getattr(full, name).clone()
        tensors[name][layer, list(_several(kv_heads))] = value
    return Policy.uniform(full.shape, **tensors, stride=stride, prefix=full.prefix)


class SingleHeadLoss:
    """Losses of single heads, or of several of one layer together.

    By the shortcut where the decoder allows it, and by plain replays elsewhere.

    The shortcut needs a decoder whose heads write into a matrix of their own (see `find_sites`); whether it gives the same loss
    as a plain replay is tried on the first heads asked for, before it is relied on. Where blocks are not all that hidden states
    go through, those under a layer run too.

    Args:
        replay: the images.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that the heads keep at every option.
    """

    def __init__(self, replay: Replay, stride: int, anchor: int = 0) -> None:
        self.replay = replay
        self.stride, self.anchor = stride, anchor
        self.outputs = HeadOutputs(replay, stride, anchor)
        self.shortcut = self.outputs.can
        self._option: Option | None = None
        self._written: list[list[torch.Tensor]] = []
        self._tried = False
        self._skips: bool | None = None

    def loss(self, layer: int, kv_heads: int | Sequence[int], option: Option) -> float:
        """Mean guided KL in nats a token; cheapest when asked for all heads of an option in turn.

        Args:
            layer: of these heads.
            kv_heads: number of the KV head, or of several that are measured together.
            option: what they keep, while all other heads keep everything.
        """
        heads = _several(kv_heads)
        if self.shortcut and not self._tried:
            plain, short = self._plain(layer, heads, option), self._short(layer, heads, option)
            self._tried = plain > 1e-6  # a head that loses nothing says nothing about the shortcut
            self.shortcut = abs(plain - short) <= 1e-6 + 0.02 * abs(plain)
            return plain
        return self._short(layer, heads, option) if self.shortcut else self._plain(layer, heads, option)

    def _plain(self, layer: int, heads: Sequence[int], option: Option) -> float:
        return self.replay.measure(alone_policy(self.replay, layer, heads, option, self.stride, self.anchor)).kl

    def _short(self, layer: int, heads: Sequence[int], option: Option) -> float:
        with torch.inference_mode():
            if option != self._option:
                self._written = [self.outputs.under(number, option) for number in range(len(self.replay.batches))]
                self._option = option
            total, count = 0.0, 0
            for number, batch in enumerate(self.replay.batches):
                divergence = self._spliced(number, batch, layer, heads)
                total, count = total + float(divergence.double().sum()), count + divergence.numel()
        return total / count

    def _spliced(self, number: int, batch: Batch, layer: int, kv_heads: Sequence[int]) -> torch.Tensor:
        """Guided KL [images, N - 1] with these heads' output in layer `layer` put in place of the full one."""
        replay, shape = self.replay, self.replay.model.shape
        group = shape.query_heads // shape.kv_heads * shape.head_dim
        columns = torch.cat([torch.arange(head * group, (head + 1) * group) for head in kv_heads])
        sites = self.outputs.sites
        places = image_places(replay, batch, sites)
        rows = torch.arange(len(places), device=places.device)[:, None, None]

        def splice(_: int, heads: torch.Tensor) -> torch.Tensor:
            heads = heads.clone()
            heads[rows, places[..., None], columns.to(heads.device)] = self._written[number][layer][:, :, columns]
            return heads

        skips = self._may_skip()
        with before([sites.projections[layer]], splice):
            hidden = self._from(number, batch, layer) if skips else replay.full(batch)
        return replay.divergence(hidden, batch.images)

    def _from(self, number: int, batch: Batch, layer: int) -> torch.Tensor:
        """Hidden states [rows, N - 1, C] of a call in which the blocks under `layer` do nothing, and it gets its full input."""
        sites, inputs = self.outputs.sites, self.outputs.inputs(number)[layer]
        with (
            _skipping(self.replay.model.decoder, sites.blocks[:layer], sites.tuples),
            before([sites.blocks[layer]], lambda _, hidden: inputs),
        ):
            return self.replay.full(batch)

    def _may_skip(self) -> bool:
        """Whether nothing is lost by that, tried once on the last layer."""
        if self._skips is None:
            batch, last = self.replay.batches[0], self.replay.model.shape.layers - 1
            full, found = self.replay.full(batch), self._from(0, batch, last)
            self._skips = bool((full - found).abs().max() <= 1e-3 * full.abs().max())
        return self._skips


def _several(kv_heads: int | Sequence[int]) -> Sequence[int]:
    return (kv_heads,) if isinstance(kv_heads, int) else kv_heads


class _Skip(nn.Module):
    """A decoder layer that hands its input on, in the thread that made it; in others the layer that it stands for runs."""

    def __init__(self, replaced: nn.Module, tuples: bool) -> None:
        super().__init__()
        self._replaced, self._thread, self._tuples = (replaced,), threading.get_ident(), tuples
        for name in ("attention_type", "layer_type"):  # read by decoders that mix kinds of attention
            if hasattr(replaced, name):
                setattr(self, name, getattr(replaced, name))

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor | tuple[torch.Tensor]:
        if threading.get_ident() != self._thread:
            return self._replaced[0](hidden_states, *args, **kwargs)
        return (hidden_states,) if self._tuples else hidden_states


@contextmanager
def _skipping(decoder: nn.Module, blocks: list[nn.Module], tuples: bool) -> Iterator[None]:
    """These blocks hand on what they get, as tuples or not; their places stay."""
    skipped = {id(block) for block in blocks}
    places = [
        (owner, name, part) for owner in decoder.modules() for name, part in owner.named_children() if id(part) in skipped
    ]
    for owner, name, part in places:
        owner._modules[name] = _Skip(part, tuples)
    try:
        yield
    finally:
        for owner, name, part in places:
            owner._modules[name] = part
