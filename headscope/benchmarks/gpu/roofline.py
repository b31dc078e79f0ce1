"""What a decoding step costs at least: bytes over the measured bandwidth, or operations over the rate of a large product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.benchmarks.shapes import Size
from headscope.policy import Policy


@dataclass(frozen=True)
class Part:
    """A part of a step: name, bytes that it reads, operations of its products."""

    name: str
    nbytes: float
    operations: float


@dataclass(frozen=True)
class Roofline:
    """What a card was measured to do.

    Attributes:
        bandwidth: bytes a second that it reads.
        rate: operations a second of a large product.
    """

    bandwidth: float
    rate: float

    def seconds(self, part: Part) -> float:
        """The least time of a part: its bytes and its operations overlap."""
        return max(part.nbytes / self.bandwidth, part.operations / self.rate)

    def step(self, parts: list[Part]) -> float:
        """The least time of parts that follow each other."""
        return sum(self.seconds(part) for part in parts)


def products(size: Size) -> dict[str, tuple[int, int, int]]:
    """(times a step, columns in, columns out) of the matrix products of a step, merged where the input is the same."""
    width, heads, kv = size.heads * size.head_dim, size.heads * size.head_dim, size.kv_heads * size.head_dim
    return {
        "q, k, v": (size.layers, width, heads + 2 * kv),
        "o": (size.layers, heads, width),
        "gate, up": (size.layers, width, 2 * size.inner),
        "down": (size.layers, size.inner, width),
        "head, first": (1, width, width),
        "head, codes": (1, width, size.codes),
    }


def weight_bytes(size: Size, itemsize: int) -> int:
    """Bytes of all weights that a step reads.

    Args:
        size: of the model.
        itemsize: bytes of a number.
    """
    return sum(times * wide * high * itemsize for times, wide, high in products(size).values())


def step_parts(size: Size, rows: int, itemsize: int, live: float) -> list[Part]:
    """The products of a step, and its attention.

    Args:
        size: of the model.
        rows: of the batch.
        itemsize: bytes of a number of the weights.
        live: bytes of the cache that attention reads.
    """
    found = [
        Part(name, times * wide * high * itemsize, 2.0 * rows * times * wide * high)
        for name, (times, wide, high) in products(size).items()
    ]
    return [*found, Part("attention", live, 0.0)]  # far below what the tensor cores can do


def live_bytes(policy: Policy, prefix: int, rows: int, itemsize: int) -> torch.Tensor:
    """Bytes of keys and values that attention reads at every token, float64 [N]; scales of fewer bits are not counted.

    Args:
        policy: what is kept.
        prefix: tokens of the prompts.
        rows: of the batch.
        itemsize: bytes of a number that is kept as it is.
    """
    token = torch.arange(policy.shape.geometry.tokens, dtype=torch.float64)
    begin = token // policy.stride * policy.stride  # of its stride
    total = torch.zeros_like(token)
    columns = (policy.window, policy.heavy, policy.anchor, policy.bits)
    kinds, counts = torch.stack([column.flatten().long() for column in columns], 1).unique(dim=0, return_counts=True)
    for (window, heavy, anchor, bits), count in zip(kinds.tolist(), counts.tolist(), strict=True):
        seen = (token + 1).clamp(max=anchor)
        after = (token + 1 - anchor).clamp(min=0)
        if heavy:
            before = (begin - anchor).clamp(min=0)
            image = before.clamp(max=window + heavy) + after - before
        else:
            image = after.clamp(max=window + 1)
        number = itemsize if bits == 16 else bits / 8  # 16 stands for the weights' own
        total += count * ((prefix + seen) * itemsize + image * number)
    return 2 * policy.shape.head_dim * rows * total


def image_seconds(roofline: Roofline | None, size: Size, policy: Policy, batch: int, itemsize: int) -> float | None:
    """The least time of a batch of guided images, without the prompts; None where nothing is known of the card.

    Args:
        roofline: of the card.
        size: of the model.
        policy: what is kept.
        batch: images.
        itemsize: bytes of a number of the weights.
    """
    if roofline is None:
        return None
    live = live_bytes(policy, size.prefix, 2 * batch, itemsize)[:-1]  # nothing looks at the last token
    return sum(roofline.step(step_parts(size, 2 * batch, itemsize, float(each))) for each in live)
