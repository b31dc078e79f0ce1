"""How much memory a replay works with."""

from __future__ import annotations

import torch

from headscope.models import ImageModel


def replayed_bytes(model: ImageModel, prefix: int, streams: int) -> int:
    """What an image takes while it is replayed: logits, states and attention masks.

    Args:
        model: the model.
        prefix: tokens before the image.
        streams: that an image takes.
    """
    shape, length = model.shape, prefix + model.shape.geometry.tokens
    width = model.embed_tokens(torch.zeros(1, 1, dtype=torch.int64, device=model.device)).shape[-1]
    states = 24 * max(width, shape.query_heads * shape.head_dim)  # residual, projections, the MLP's middle
    return 4 * streams * length * (states + 3 * shape.query_heads * length + 5 * model.vocabulary)
