"""What a preset is, and how one becomes a policy under a limit."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch

from headscope.errors import BudgetError
from headscope.geometry import Geometry
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.project import fit


class Preset(Protocol):
    """A method with its free numbers set.

    Attributes:
        name: by which it is chosen.
    """

    name: ClassVar[str]

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """The policy at the largest size that fits.

        Args:
            limit: what has to hold it, and what that is counted for.
            semantic_score: float32 [layers, kv_heads] in [0, 1], 1 is semantic; for methods that tell classes of heads apart.

        Raises:
            BudgetError: it does not fit at any size.
        """
        ...

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """Settings to choose from."""
        ...


def part_of_row(row: int, parts: int) -> int:
    """The stride that chooses about `parts` times a row: a divisor of the row."""
    return next(stride for stride in range(max(row // parts, 1), 0, -1) if row % stride == 0)


def one_each(limit: Limit) -> torch.Tensor:
    """float32 [layers, kv_heads]."""
    return torch.ones(limit.spec.shape.layers, limit.spec.shape.kv_heads)


def row_stride(limit: Limit) -> int:
    """The stride of a row."""
    return limit.spec.shape.geometry.stride_row


def everything(preset: Preset, limit: Limit, semantic_score: torch.Tensor | None, bits: int) -> Policy:
    """All tokens, in so many bits.

    Raises:
        BudgetError: that is more than the limit.
    """
    spec = limit.spec
    policy = Policy.uniform(
        spec.shape,
        window=spec.shape.geometry.tokens - 1,
        stride=1,
        prefix=spec.prefix,
        semantic_score=semantic_score,
        bits=bits,
        provenance={"method": preset.name},
    )
    if (needed := spec.bytes_of(policy)) > limit.bytes:
        share = f"{100 * needed / spec.full_bytes:.3g}%"
        raise BudgetError(
            f"preset {preset.name}: takes {needed:,} bytes, the limit is {limit.bytes:,}; expected keep {share} or more."
        )
    return policy


def at_its_largest(
    preset: Preset,
    limit: Limit,
    semantic_score: torch.Tensor | None,
    weights: tuple[torch.Tensor, torch.Tensor],
    *,
    stride: int = 1,
    anchor: int = 0,
    decay: float = 1.0,
) -> Policy:
    """Weights of window and heavy tokens, at the largest size that fits."""
    policy = fit(*weights, limit, stride=stride, anchor=anchor, decay=decay, semantic_score=semantic_score)
    return policy.replace(provenance={"method": preset.name})
