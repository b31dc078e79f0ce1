"""Attach to a decoder, replay recorded images through it, and add up what each layer's heads look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import Group, ImageModel, answer, expect_decoder, observe
from headscope.samples import Samples
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.accumulators import Accumulator
from headscope.tracing.live import LiveAccumulator
from headscope.tracing.selection import STREAMS, Selection
from headscope.tracing.streams import attention_divergence, cache_divergence


@dataclass(frozen=True)
class Layer:
    """What one layer showed.

    Attributes:
        bands: one `Accumulated` a band of rows, for the sequences of all streams traced, the conditional ones first.
        cache_divergence: float32 [images, kv_heads, fed], see streams.py; None without two streams.
        attention_divergence: float32 [images, h], see there; None without two streams or the full set.
    """

    bands: list[Accumulated]
    cache_divergence: torch.Tensor | None = None
    attention_divergence: torch.Tensor | None = None

    @property
    def whole(self) -> Accumulated:
        """All that was traced, as one."""
        total = self.bands[0]
        for band in self.bands[1:]:
            total = total.plus(band)
        return total


@dataclass(frozen=True)
class LayerTraces:
    """What a pass showed.

    Attributes:
        layers: a `Layer` for each layer traced, by its number.
        streams: those traced, in the order of the batch.
    """

    layers: dict[int, Layer] = field(default_factory=dict)
    streams: tuple[str, ...] = STREAMS


@torch.inference_mode()
def watch(
    model: ImageModel,
    samples: Samples,
    selection: Selection | None = None,
    each: Callable[[int, Layer], None] | None = None,
) -> LayerTraces:
    """One teacher-forced pass over `samples`, both streams of guidance. Attention is causal, so it sees what decoding saw.

    Args:
        model: that generated the images.
        samples: the images, as tokens.
        selection: what to trace, everything of the default set unless given.
        each: called with every layer as soon as it is done; then nothing is kept of it.

    Raises:
        DataError: a layer, head or row that the model does not have, or a stream that the images do not have.
    """
    selection = selection or Selection()
    shape = model.shape
    selection.check(shape.layers, shape.query_heads, shape.geometry.rows)
    streams = streams_of(samples.guidance, selection)
    prefix = model.tokenize(samples.prompts)
    halves = {"conditional": (prefix.ids, prefix.mask), "unconditional": (prefix.unconditional_ids, prefix.unconditional_mask)}
    ids, mask = (torch.cat([halves[stream][part] for stream in streams]) for part in (0, 1))
    image = model.embed_tokens(samples.tokens[:, :-1].long().to(model.device)).repeat(len(streams), 1, 1)
    embeds = torch.cat([model.embed_prefix(ids), image], 1)
    full_mask = torch.cat([mask, mask.new_ones(image.shape[:2])], 1)
    with watching(model.decoder, shape.geometry, ids.shape[1], selection, streams, each, once=True) as watched:
        model.forward(embeds, full_mask)
    return watched


def streams_of(guidance: float, selection: Selection) -> tuple[str, ...]:
    """The streams to trace: without guidance there is the conditional one alone.

    Raises:
        DataError: none is left.
    """
    streams = tuple(stream for stream in STREAMS if stream in selection.streams)
    if guidance == 1.0:
        streams = tuple(stream for stream in streams if stream == STREAMS[0])
    if not streams:
        raise DataError(
            "The images were generated without guidance, so there is no unconditional stream: trace the conditional one."
        )
    return streams


@contextmanager
def watching(
    decoder: nn.Module,
    geometry: Geometry,
    prefix: int,
    selection: Selection,
    streams: tuple[str, ...] = STREAMS,
    each: Callable[[int, Layer], None] | None = None,
    *,
    once: bool = False,
) -> Iterator[LayerTraces]:
    """Trace the one forward of `decoder` that the block makes: the prefix and all image tokens at once.

    Args:
        decoder: the transformer that is run.
        geometry: of the image.
        prefix: positions before the image, padding included.
        selection: what to trace.
        streams: of the batch, in its order.
        each: called with every layer as soon as it is done; then nothing is kept of it.
        once: for a forward whose output nobody uses: where everything is traced, a layer's output is taken from the attention
            that was traced, in place of computing that a second time. Then it is the same but for rounding; else to the bit.
    """
    watched = LayerTraces(streams=streams)
    accumulator = Accumulator(geometry, prefix, selection)
    both = streams == STREAMS

    @torch.inference_mode()
    def keep(number: int, groups: list[Group]) -> torch.Tensor | None:
        group = groups[0]
        batch, heads, length, size = group.q.shape
        output = group.q.new_empty(batch, length - prefix, heads, size) if once and accumulator.sees_all(group) else None
        layer = Layer(
            accumulator.add(group, output),
            cache_divergence(group, prefix) if both and group.v is not None else None,
            attention_divergence(group, geometry, prefix, selection) if both and selection.full else None,
        )
        if each is None:
            watched.layers[number] = layer
        else:
            each(number, layer)
        return output

    with answer(decoder, keep, selection.layers):
        yield watched


@contextmanager
def watch_live(
    decoder: nn.Module,
    geometry: Geometry,
    selection: Selection | None = None,
    streams: tuple[str, ...] = STREAMS,
    prefix: int | None = None,
) -> Iterator[LayerTraces]:
    """Trace whatever the block generates with `decoder`, step by step, through any cache: one image batch a block.

    The first forward must bring the whole prefix, unless its length is told. `layers` of what is yielded is filled when the
    block ends; with a plain cache it holds what `watch` gives for the same tokens, with a compressed one what was left to look
    at.

    Args:
        decoder: the transformer that generates.
        geometry: of the image.
        selection: what to trace, everything of the default set unless given.
        streams: that the batch has, in their order; both are traced.
        prefix: tokens before the image, padding included; needed where the prompt comes in several forwards.

    Raises:
        ModelError: no decoder whose attention can be seen, but an image model, say.

    Example:
        >>> with watch_live(model.decoder, model.shape.geometry) as seen:  # doctest: +SKIP
        ...     generate(model, ["red apple"], 0, policy=policy)
        >>> seen.layers[0].whole.columns  # doctest: +SKIP
    """
    expect_decoder(decoder, "watch_live")
    chosen = selection or Selection()
    live: dict[int, LiveAccumulator] = {}

    @torch.inference_mode()
    def step(number: int, groups: list[Group]) -> None:
        live.setdefault(number, LiveAccumulator(geometry, chosen, prefix)).step(groups)

    watched = LayerTraces(streams=streams)
    with observe(decoder, step, chosen.layers):
        yield watched
    with torch.inference_mode():
        for number in sorted(live):
            if bands := live[number].end():
                watched.layers[number] = Layer(bands)
