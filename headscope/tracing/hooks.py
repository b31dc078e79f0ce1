"""Attach to a decoder, replay recorded pictures through it, and add up what each layer's heads look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.models.attention import Group, observe
from headscope.models.protocol import ImageModel
from headscope.models.samples import Samples
from headscope.tracing.accumulators import Accumulated, Accumulator


@dataclass(frozen=True)
class Watched:
    """What one pass showed.

    Attributes:
        layers: one `Accumulated` a layer, its batch being the pictures of the conditional stream and then, under guidance,
            those of the unconditional one.
        streams: 1 or 2.
    """

    layers: list[Accumulated]
    streams: int


@torch.inference_mode()
def watch(model: ImageModel, samples: Samples) -> Watched:
    """One teacher-forced pass over `samples`, both streams of guidance; the model's attention stays the one it has.

    Attention is causal, so this pass sees exactly what decoding saw.
    """
    streams = 1 if samples.guidance == 1.0 else 2
    prefix = model.encode(samples.prompts)
    ids, mask = prefix.ids, prefix.mask
    if streams == 2:
        ids = torch.cat([ids, prefix.unconditional_ids])
        mask = torch.cat([mask, prefix.unconditional_mask])
    image = model.embed_tokens(samples.tokens[:, :-1].long().to(model.device)).repeat(streams, 1, 1)
    embeds = torch.cat([model.embed_prefix(ids), image], 1)
    full_mask = torch.cat([mask, mask.new_ones(image.shape[:2])], 1)
    accumulator = Accumulator(model.shape.geometry, ids.shape[1])
    layers: dict[int, Accumulated] = {}

    def keep(layer: int, groups: list[Group]) -> None:
        layers[layer] = accumulator.add(groups[0])

    with observe(model.decoder, keep):
        model.decode(embeds, full_mask)
    return Watched([layers[layer] for layer in sorted(layers)], streams)
