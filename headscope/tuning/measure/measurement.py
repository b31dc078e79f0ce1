"""Measurements: what a policy loses, and what a search needs of whoever measures it; no model is known here.

An image of N tokens gives N - 1 positions; position i of every array belongs to image token i + 1, as replay.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from headscope.geometry import Geometry
from headscope.policy import Policy


@dataclass(frozen=True)
class ReplayResult:
    """What one policy loses on the recorded images.

    Attributes:
        divergence: float32 [images, N - 1], forward KL of the guided distribution, nats.
        conditional: the same of the conditional stream alone; None where it was not asked for, or without guidance.
        unconditional: likewise, of the unconditional stream.
        agreement: bool [images, N - 1], both distributions have the same most likely code.
        surplus: float32 [images, N - 1], extra nats that the recorded token costs (may be negative).
        geometry: of the image, for sums by row.
        bound: by how much `kl` may be too low, nats a token: 0 unless only the top of the reference is kept.
        cache_bytes: bytes of the cache's tensors for one image (both streams).
        seconds: wall clock of this measurement.
    """

    divergence: torch.Tensor
    agreement: torch.Tensor
    surplus: torch.Tensor
    geometry: Geometry
    conditional: torch.Tensor | None = None
    unconditional: torch.Tensor | None = None
    bound: float = 0.0
    cache_bytes: int = 0
    seconds: float = 0.0

    @classmethod
    def of(
        cls, parts: Sequence[tuple[torch.Tensor | None, ...]], geometry: Geometry, *, cache_bytes: int, seconds: float
    ) -> ReplayResult:
        """Of batches.

        Args:
            parts: of `Replay.compare`, a batch each.
            geometry: of the image.
            cache_bytes: bytes of the cache's tensors for one image.
            seconds: wall clock of all.
        """
        columns = [[part for part in column if part is not None] for column in zip(*parts, strict=True)]
        joined = [torch.cat(column) if column else None for column in columns]
        divergence, bound, agreement, surplus, conditional, unconditional = joined
        assert divergence is not None
        assert bound is not None
        assert agreement is not None
        assert surplus is not None
        return cls(
            divergence,
            agreement,
            surplus,
            geometry,
            conditional,
            unconditional,
            bound=float(bound.double().mean()),
            cache_bytes=cache_bytes,
            seconds=seconds,
        )

    @property
    def kl(self) -> float:
        """Mean over images and positions: the search's objective, nats a token."""
        return float(self.divergence.double().mean())

    @property
    def top1(self) -> float:
        """Share of positions whose most likely code is that of the full cache."""
        return float(self.agreement.double().mean())

    @property
    def extra_nats(self) -> float:
        """Mean extra nats of the recorded tokens."""
        return float(self.surplus.double().mean())

    @property
    def kl_by_image(self) -> torch.Tensor:
        """float64 [images]: losses that pair with another policy's, image by image."""
        return self.divergence.double().mean(1)

    @property
    def kl_by_row(self) -> torch.Tensor:
        """float64 [rows]: mean over images and the tokens of a row (row 0 without its first token)."""
        row = self.geometry.coordinates()[0][1:]
        totals = torch.zeros(self.geometry.rows, dtype=torch.float64).index_add_(0, row, self.divergence.double().mean(0))
        return totals / torch.bincount(row, minlength=self.geometry.rows).clamp(min=1)

    def summary(self) -> dict[str, float]:
        """Plain numbers for tables and JSON."""
        numbers = {"kl": self.kl, "top1": self.top1, "extra_nats": self.extra_nats}
        for name, values in (("kl_conditional", self.conditional), ("kl_unconditional", self.unconditional)):
            if values is not None:
                numbers[name] = float(values.double().mean())
        return numbers


class Pruned(Exception):
    """Raised by the watcher of a replay to end it."""


# Told the losses, float64 [images], of the next images as soon as they are known; may raise to end the measurement.
Watch = Callable[[torch.Tensor], None]


class PolicyEvaluator(Protocol):
    """What a search needs of a replay; tests pass synthetic ones."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def measure(self, policy: Policy, watch: Watch | None = None) -> ReplayResult:
        """The loss of `policy` on the images this object holds; see `Replay.measure`."""
        ...


@dataclass
class MemoizedReplay:
    """A replay that measures equal policies once.

    Attributes:
        replay: what measures.
        results: by the policy's fingerprint.
    """

    replay: PolicyEvaluator
    results: dict[str, ReplayResult] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.replay)

    def measure(self, policy: Policy, watch: Watch | None = None) -> ReplayResult:
        """The stored result, or a new measurement."""
        key = policy.fingerprint()
        if key not in self.results:
            self.results[key] = self.replay.measure(policy, watch)
        elif watch is not None:
            watch(self.results[key].kl_by_image)
        return self.results[key]
