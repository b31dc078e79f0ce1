"""Sampling on the device, so that a captured graph holds it: see kernels/sampling.py."""

from __future__ import annotations

import torch

from headscope.runtime.decoders.flat_attention import power
from headscope.runtime.noise import LARGEST
from headscope.runtime.sampling import Sampler

_CODES = 2048  # codes that a program takes


class DeviceSampler:
    """Samples and embeds the tokens of a batch, in two launches, or three with top-k.

    Args:
        sampler: gives guidance, temperature and top-k; the keys of its noise are taken in by `take`.
        images: of the batch.
        tokens: of an image.
        table: [V, C], embeddings of all codes.
        x: [streams * images, C], where embeddings of sampled tokens go.

    Attributes:
        tokens: int64 [N, images].
        failed: int64 [1], the first token whose logits are no numbers; N: none.
    """

    def __init__(self, sampler: Sampler, images: int, tokens: int, table: torch.Tensor, x: torch.Tensor) -> None:
        self.images, self._table, self._x = images, table, x
        self._guidance, self._temperature, self._top_k = sampler.guidance, sampler.temperature, sampler.top_k
        device = x.device
        self.tokens = torch.zeros(tokens, images, dtype=torch.int64, device=device)
        self.failed = torch.full((1,), tokens, dtype=torch.int64, device=device)
        self._low = torch.zeros(tokens, images, dtype=torch.int32, device=device)
        self._high = torch.zeros_like(self._low)
        self._codes = len(table)
        self._block = min(_CODES, max(power(self._codes), 16))
        self._blocks = -(-self._codes // self._block)
        self._tops = torch.zeros(images, self._blocks, dtype=torch.float32, device=device)
        self._places = torch.zeros(images, self._blocks, dtype=torch.int32, device=device)
        self._floors = torch.zeros(images, dtype=torch.float32, device=device)

    def serves(self, sampler: Sampler) -> bool:
        """Whether what was captured samples as this one does."""
        ours = (self._guidance, self._temperature, self._top_k)
        return ours == (sampler.guidance, sampler.temperature, sampler.top_k)

    def take(self, sampler: Sampler) -> None:
        """Begin a batch with the noise of this sampler; of fewer images, the last one's serves for the rest."""
        for into, keys in zip((self._low, self._high), sampler.noise.keys, strict=True):
            into[:, : keys.shape[1]] = keys
            into[:, keys.shape[1] :] = keys[:, -1:]
        self.failed.fill_(len(self.tokens))

    def __call__(self, logits: torch.Tensor, now: torch.Tensor, ahead: int) -> None:
        """Token now + `ahead` from logits [streams * images, V], contiguous."""
        from headscope.runtime.decoders.kernels import sampling as kernels

        images, codes, guided = self.images, self._codes, len(self._x) > self.images
        greedy = self._temperature == 0.0
        limited = self._top_k is not None and self._top_k < codes and not greedy
        if limited:
            kernels.floor_of[(images,)](
                logits, self._floors, self._guidance, images, codes, self._top_k, wide=power(codes), guided=guided, num_warps=8
            )
        kernels.draw[(images, self._blocks)](
            logits,
            self._low,
            self._high,
            self._floors,
            self._tops,
            self._places,
            now,
            ahead,
            self._guidance,
            1.0 if greedy else self._temperature,
            LARGEST,
            images,
            codes,
            block=self._block,
            guided=guided,
            greedy=greedy,
            limited=limited,
        )
        size = self._x.shape[1]
        kernels.settle[(images,)](
            self._tops,
            self._places,
            self.tokens,
            self.failed,
            self._table,
            self._x,
            now,
            ahead,
            images,
            self._blocks,
            wide_blocks=power(self._blocks),
            size=size,
            wide=power(size),
            streams=len(self._x) // images,
        )
