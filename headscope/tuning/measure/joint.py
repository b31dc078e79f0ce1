"""The joint loss: what heads lose together by their gradients, interactions to second order included.

The table by gradients (fisher.py) squares g . delta head by head. Kept as they are, these products give for any choice of
options the loss of all heads at once,

    1/2 E[(sum over heads of g . delta)^2],

without another pass of the model: errors of heads that point the same way add up, others cancel.
reports/stickers/joint.csv says what that predicts and what choosing by it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headscope.errors import DataError
from headscope.progress import Progress, of_task
from headscope.tuning.measure.fisher import SAMPLES, head_products, sampled_gradients
from headscope.tuning.measure.head_outputs import HeadOutputs
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.replay import Replay

# What products may take: 42 options of 64 heads on 32 images of 16 x 16 tokens are 0.2 GiB, 960 heads x 400 options 105.
ROOM = 2 * 2**30


@dataclass(frozen=True)
class Products:
    """g . delta of every head at every option.

    Attributes:
        options: what a head may keep; a head that keeps everything has no product.
        values: float16 [O, layers, kv_heads, images, samples * (N - 1)].
    """

    options: tuple[Option, ...]
    values: np.ndarray

    def losses(self) -> np.ndarray:
        """float64 [layers, kv_heads, O], nats a token: the table by gradients."""
        return np.stack([np.square(one, dtype=np.float64).mean((-1, -2)) / 2 for one in self.values], -1)

    def joint(self, choice: np.ndarray) -> float:
        """Nats a token of all heads together.

        Args:
            choice: int [layers, kv_heads], indices of options; O stands for everything.
        """
        total = np.zeros(self.values.shape[3:], dtype=np.float64)
        for layer, head in np.ndindex(choice.shape):
            if choice[layer, head] < len(self.options):
                total += self.values[choice[layer, head], layer, head]
        return float(np.square(total).mean() / 2)


def measure_products(
    replay: Replay,
    options: Sequence[Option],
    stride: int,
    *,
    anchor: int = 0,
    samples: int = SAMPLES,
    seed: int = 0,
    room: int = ROOM,
    progress: Progress | None = None,
) -> Products:
    """The products of which a table by gradients is the mean square, kept.

    Args:
        replay: the calibration images, of a decoder that `HeadOutputs` can take apart.
        options: what a head may keep.
        stride: tokens between two choices of heavy tokens.
        anchor: first image tokens that heads keep at every option.
        samples: gradients an image.
        seed: of the sampled codes.
        room: most bytes that products may take.
        progress: told of replays, one an option and batch.

    Raises:
        DataError: they would take more than `room`.
    """
    shape, positions = replay.model.shape, replay.geometry.tokens - 1
    size = (len(options), shape.layers, shape.kv_heads, len(replay), samples * positions)
    if (needed := 2 * int(np.prod(size))) > room:
        raise DataError(
            f"Products of {len(options)} options, {shape.layers * shape.kv_heads} heads and {len(replay)} images take "
            f"{needed:,} bytes, {room:,} are allowed: take fewer options, images or samples."
        )
    values, outputs = np.empty(size, dtype=np.float16), HeadOutputs(replay, stride, anchor)
    tell = of_task(progress, "products of every head", len(options) * len(replay.batches))
    for number, batch in enumerate(replay.batches):
        gradients = sampled_gradients(replay, number, samples, seed)
        with torch.inference_mode():
            full = outputs.full(number)
            for place, option in enumerate(options):
                found = head_products(replay, gradients, outputs.under(number, option), full)
                by_head = torch.stack(found).permute(0, 4, 2, 1, 3)  # layers, kv_heads, images, samples, positions
                values[place, :, :, batch.images] = by_head.flatten(3).half().cpu().numpy()
                tell(number * len(options) + place + 1, len(options) * len(replay.batches))
        outputs.forget(number)
    return Products(tuple(options), values)
