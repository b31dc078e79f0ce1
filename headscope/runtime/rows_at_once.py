"""Rows at once: a batch of images is fed step by step, whoever says which tokens they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from headscope.models import ImageModel
from headscope.policy import Step
from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.row_cache import RowsLayer


def unfilled(model: ImageModel, images: int) -> torch.Tensor:
    """int64 [images, N] on the model's device, to draw tokens into: the code of row ends where they are forced, else 0."""
    geometry = model.shape.geometry
    tokens = torch.zeros(images, geometry.tokens, dtype=torch.int64, device=model.device)
    tokens[:, ~geometry.coordinates()[2].to(model.device)] = model.vocabulary - 1
    return tokens


def feed_rows(
    model: Any,
    cache: CompressedCache,
    mask: torch.Tensor,
    embedded: Callable[[list[int]], torch.Tensor],
) -> Iterator[tuple[int, torch.Tensor]]:
    """Feed images whose prompts were fed, all but their last token.

    Args:
        model: an `ImageModel` with `forward_at`.
        cache: of the images, empty but for the prompts; a `RowsCache`.
        mask: int64 [rows, P] of the prompts, 0 at the padding.
        embedded: gives embeddings [rows, n, C] of image tokens by their numbers; asked once they were given out here.

    Returns:
        Image tokens from 1 on, each once, in the order in which they are drawn, with the hidden states [rows, C] that tell it.
    """
    layer = cache.compressed_layers[0]
    assert isinstance(layer, RowsLayer)
    for step in layer.plan.steps[:-1]:  # nothing looks at the last token, which is a step of its own
        embeds = _embeds(step, embedded)
        places = torch.tensor(step.positions, device=mask.device) + mask.shape[1]
        with compressed(model, cache.policy):
            hidden = model.forward_at(embeds, places, mask, None, cache)
        for place, token in step.draws:
            yield token, hidden[:, place]


def replayed_rows(model: Any, cache: CompressedCache, mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, N - 1, C] that tell image tokens 1 .. N - 1 of images whose tokens are known; see `feed_rows`.

    Args:
        model: see there.
        cache: see there.
        mask: see there.
        tokens: [rows, N - 1, C], embeddings of all tokens but the last.
    """
    found: dict[int, torch.Tensor] = dict(feed_rows(model, cache, mask, lambda at: tokens[:, at]))
    return torch.stack([found[token] for token in sorted(found)], 1)


def _embeds(step: Step, embedded: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
    """[rows, T, C] of what a step is fed."""
    if step.stand_in is None:
        return embedded([*step.tokens])
    count, sources = len(step.tokens), step.stand_in.sources
    found = embedded([*step.tokens, *sources])
    stand_in = found[:, count:]
    stand_in = stand_in.mean(1, keepdim=True) if stand_in.is_floating_point() else stand_in[:, :1]
    return torch.cat([found[:, :count], stand_in], 1)
