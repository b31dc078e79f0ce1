"""How much memory a replay works with."""

from __future__ import annotations

import torch

from headscope.models import ImageModel

# Working memory of one batch of images: what a machine with 3 GB has room for, and on a GPU, where many small launches take the
# time, whatever they work on, what one of 24 GB has beside the weights of a 7B model.
BATCH_BYTES, GPU_BATCH_BYTES = 400 * 2**20, 6 * 2**30
# A smaller GPU gives so much of its memory.
GPU_PART = 4


def batch_bytes(device: torch.device) -> int:
    """Working memory of one batch of images that are replayed; hangs on the device alone, so that batches, and with them seeded
    results, are the same each time.

    Args:
        device: of the model.
    """
    if device.type != "cuda":
        return BATCH_BYTES
    return max(BATCH_BYTES, min(GPU_BATCH_BYTES, torch.cuda.get_device_properties(device).total_memory // GPU_PART))


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
