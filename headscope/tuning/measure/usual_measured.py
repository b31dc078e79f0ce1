"""What tokens usually receive, measured: calibration images replayed with everything kept."""

from __future__ import annotations

from pathlib import Path

import torch

from headscope.models import ImageModel
from headscope.policy import Policy
from headscope.progress import Progress, of_task
from headscope.runtime import CompressedCache, compressed
from headscope.samples import Samples
from headscope.tuning.measure.options import table_stride
from headscope.tuning.measure.replay import Replay, chunks
from headscope.tuning.measure.sensitivity import table_identity
from headscope.tuning.measure.usual import UsualAttention


def measure_usual(replay: Replay, stride: int, progress: Progress | None = None) -> UsualAttention:
    """Attention by place and stride, as a mean over images and streams.

    Args:
        replay: the images.
        stride: tokens between two ends.
        progress: told of batches of images.
    """
    shape, tokens = replay.model.shape, replay.geometry.tokens
    policy = Policy.uniform(shape, window=0, heavy=tokens, stride=stride, prefix=replay.prefix)
    total = torch.zeros(shape.layers, shape.kv_heads, tokens // stride, tokens)
    tell = of_task(progress, "what tokens usually receive", len(replay.batches))
    with torch.inference_mode(), compressed(replay.model, policy):
        for number, batch in enumerate(replay.batches):
            cache = CompressedCache(policy, prefix=replay.prefix)
            replay.feed_prefix(batch, cache)
            before = torch.zeros(shape.layers, shape.kv_heads, tokens)
            for start, end in chunks(policy, replay.geometry):
                replay.model.forward(batch.tokens[:, start:end], batch.mask[:, : replay.prefix + end], cache)
                for layer, kept in enumerate(cache.compressed_layers):
                    now = kept.received().sum(0).cpu()
                    total[layer, :, start // stride, :end] += now - before[layer, :, :end]
                    before[layer, :, :end] = now
            tell(number + 1, len(replay.batches))
    return UsualAttention(total / (len(replay) * replay.streams), stride, shape.geometry.rows)


def usual_attention(model: ImageModel, samples: Samples, path: Path, progress: Progress | None = None) -> UsualAttention:
    """What a file holds of these images, or what is measured and then stands there.

    Args:
        model: the model.
        samples: the calibration images.
        path: of the file; one of other images is written anew.
        progress: told of batches of images.

    Raises:
        DataError: the file is not readable.
    """
    replay, stride = Replay(model, samples, by_stream=False), table_stride(model.shape.geometry)
    identity = table_identity(replay, stride)
    found = UsualAttention.load(path, identity, model.shape) if path.exists() else None
    if found is None:
        found = measure_usual(replay, stride, progress)
        found.save(path, identity)
    return found
