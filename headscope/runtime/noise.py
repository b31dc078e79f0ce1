"""Gumbel noise as a function of (seed, token, code): argmax(logits / temperature + noise) is a draw from the softmax.

No generator has a state, so that an image's noise depends neither on its place in a batch nor on what came before, on any
device, and a captured graph may compute it. The hash is two rounds of a 32-bit finalizer with avalanche (Wang and Jenkins'
construction with the constants that Wellons found by search, "lowbias32"), keyed by 64 bits from splitmix64 (Steele et al.,
OOPSLA 2014) of seed and token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# The largest number that `gumbel` gives: codes whose probability is far below e^-17 of the likeliest are never drawn.
LARGEST = -math.log(-math.log(1 - 2.0**-25))

_MASK = (1 << 64) - 1


class Noise:
    """The noise of a batch of images.

    Args:
        seeds: one an image, n of them.
        tokens: of an image.
        vocabulary: number of codes.
        device: where the noise is computed.
    """

    AT_ONCE = 1 << 19  # numbers computed ahead, to save calls where a step needs few

    def __init__(self, seeds: Sequence[int], tokens: int, vocabulary: int, device: torch.device | str = "cpu") -> None:
        keys = key_of([_signed(seed & _MASK) for seed in seeds], tokens)[..., None]
        low = keys & 0xFFFFFFFF
        self._low = (low - ((low >> 31) << 32)).to(torch.int32).to(device)
        self._high = (keys >> 32).to(torch.int32).to(device)
        codes = torch.arange(vocabulary, dtype=torch.int64) * 0x9E3779B1 & 0xFFFFFFFF
        self._codes = (codes - ((codes >> 31) << 32)).to(torch.int32).to(device)
        self._ahead = max(1, min(32, self.AT_ONCE // max(len(seeds) * vocabulary, 1)))
        self._block: torch.Tensor | None = None
        self._first = 0

    @property
    def keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The lower and the upper half of every key, int32 [tokens, n]."""
        return self._low[..., 0], self._high[..., 0]

    def at(self, token: int) -> torch.Tensor:
        """float32 [n, vocabulary], finite."""
        if self._block is None or not self._first <= token < self._first + len(self._block):
            self._first = token
            part = slice(token, token + self._ahead)
            self._block = gumbel(hashed(self._codes, self._low[part], self._high[part]))
        return self._block[token - self._first]

    def of(self, token: torch.Tensor) -> torch.Tensor:
        """As `at`, of a token int64 [1] that only the device knows."""
        low, high = self._low.index_select(0, token)[0], self._high.index_select(0, token)[0]
        return gumbel(hashed(self._codes, low, high))


def hashed(codes: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """int32 of the broadcast shape, every bit as good as random. All arguments int32; multiplications wrap."""
    return _finalized(_finalized(codes ^ low).bitwise_xor_(high))


def gumbel(bits: torch.Tensor) -> torch.Tensor:
    """int32 -> float32 standard Gumbel numbers, finite, from the upper 24 bits.

    The largest uniform number, 1 - 2^-25, is 1 in float32, and infinite without the clamp.
    """
    uniform = ((bits >> 8) & 0xFFFFFF).float().add_(0.5).mul_(2.0**-24)
    return uniform.log_().neg_().log_().neg_().clamp_(max=LARGEST)


def _finalized(x: torch.Tensor) -> torch.Tensor:
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def key_of(seeds: Sequence[int], tokens: int) -> torch.Tensor:
    """Keys int64 [tokens, n] of seeds, signed numbers of 64 bits: splitmix64 of seed and token; additions and products wrap."""
    token = torch.arange(tokens, dtype=torch.int64)[:, None]
    return _splitmix(_splitmix(torch.tensor(seeds, dtype=torch.int64)) + token * _GOLDEN)


def _splitmix(x: torch.Tensor) -> torch.Tensor:
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """64 bits as a signed number."""
    return number - (1 << 64) if number >> 63 else number


_GOLDEN = _signed(0x9E3779B97F4A7C15)
