"""The known methods as policies: each a few numbers, built at the largest size that fits a byte limit.

Every method has one or two free numbers that its paper leaves open; `sweep` lists at least five settings of them, so that a
comparison can take the best. presets.py finds them by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from headscope.errors import HeadscopeError
from headscope.geometry import Geometry
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.preset import Preset, at_its_largest, everything, one_each, part_of_row, row_stride


@dataclass(frozen=True)
class Full:
    """Everything is kept."""

    name: ClassVar[str] = "full"

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        return everything(self, limit, semantic_score, 16)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """There is nothing to choose."""
        return [cls()]


@dataclass(frozen=True)
class KIVI:
    """KIVI (2402.02750) as it stands for raster images: every token is kept, in 8 or 4 bits, at the size that this takes.

    Its 2 bits and its residual window in full precision are left out; here each token is written once.

    Attributes:
        bits: of a kept number.
    """

    name: ClassVar[str] = "kivi"
    bits: int = 8

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        return everything(self, limit, semantic_score, self.bits)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """Both numbers of bits."""
        return [cls(8), cls(4)]


@dataclass(frozen=True)
class TOVA:
    """TOVA (2401.06104): at every token the one goes that the newest query attends to least; nothing is kept for being recent.

    Attributes:
        by_row: choose at row ends, by a row's attention; the paper chooses at every token (stride 1).
    """

    name: ClassVar[str] = "tova"
    by_row: bool = False

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        one = one_each(limit)
        return at_its_largest(
            self, limit, semantic_score, (0 * one, one), stride=row_stride(limit) if self.by_row else 1, decay=0.0
        )

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """Both strides."""
        return [cls(), cls(by_row=True)]


@dataclass(frozen=True)
class Streaming:
    """StreamingLLM (2309.17453): the first `anchor` image tokens and a recent window. The prompt is kept besides."""

    name: ClassVar[str] = "streaming"
    anchor: int = 4

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        one = one_each(limit)
        return at_its_largest(self, limit, semantic_score, (one, 0 * one), anchor=self.anchor)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """The paper keeps 4 sinks; 0 to a row here."""
        row = geometry.stride_row
        return [cls(anchor) for anchor in dict.fromkeys((0, 1, 2, 4, max(row // 2, 3), max(row, 5)))]


@dataclass(frozen=True)
class H2O:
    """H2O (2306.14048): some tokens are the recent ones, the others heavy hitters by the sum of attention received.

    Attributes:
        split: share of the tokens that are recent.
        by_row: choose at row ends, which costs a buffer of one row; the paper chooses at every token (stride 1).
    """

    name: ClassVar[str] = "h2o"
    split: float = 0.5
    by_row: bool = False

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        one = one_each(limit)
        weights = (self.split * one, (1 - self.split) * one)
        return at_its_largest(self, limit, semantic_score, weights, stride=row_stride(limit) if self.by_row else 1)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """The paper's even split at both strides, and other splits."""
        return [cls(split, by_row) for by_row in (False, True) for split in (0.25, 0.5, 0.75)]


@dataclass(frozen=True)
class LinearAR:
    """LineAR (2512.04857): some tokens are the recent rows, the others are chosen at each row end by the attention of the row
    just generated (decay 0). The same in every layer and head.

    Attributes:
        recent: share of the tokens that are recent.
        anchored: keep the first row too.
        strides_a_row: how often a row it chooses; once in the paper.
    """

    name: ClassVar[str] = "linear_ar"
    recent: float = 0.5
    anchored: bool = False
    strides_a_row: int = 1

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        one = one_each(limit)
        weights = (self.recent * one, (1 - self.recent) * one)
        anchor = row_stride(limit) if self.anchored else 0
        stride = part_of_row(row_stride(limit), self.strides_a_row)
        return at_its_largest(self, limit, semantic_score, weights, stride=stride, anchor=anchor, decay=0.0)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """From almost all heavy to almost all recent, and once with anchors."""
        return [*(cls(recent) for recent in (0.1, 0.3, 0.5, 0.7, 0.9)), cls(0.5, True)]

    @classmethod
    def tighter(cls, geometry: Geometry) -> list[Preset]:
        """The same, choosing four times a row."""
        return [replace(variant, strides_a_row=4) for variant in cls.sweep(geometry) if isinstance(variant, cls)]


@dataclass(frozen=True)
class Pyramid:
    """PyramidKV (2406.02069): budgets fall linearly with the layer; beside a window of recent tokens, SnapKV's recent attention
    (2404.14469) chooses once a row (decay 0).

    Attributes:
        slope: the first layer keeps 1 + slope times the mean, the last one 1 - slope times.
        recent: share of the tokens that are recent.
        strides_a_row: how often a row it chooses.
    """

    name: ClassVar[str] = "pyramid"
    slope: float = 0.5
    recent: float = 0.5
    strides_a_row: int = 1

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        layers = limit.spec.shape.layers
        place = torch.linspace(1.0, -1.0, layers) if layers > 1 else torch.zeros(1)
        size = (1 + self.slope * place)[:, None] * one_each(limit)
        weights = (self.recent * size, (1 - self.recent) * size)
        stride = part_of_row(row_stride(limit), self.strides_a_row)
        return at_its_largest(self, limit, semantic_score, weights, stride=stride, decay=0.0)

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """Slopes of both signs, and two shares of the window."""
        return [*(cls(slope) for slope in (-0.4, 0.2, 0.4, 0.6, 0.8)), cls(0.4, 0.75)]

    @classmethod
    def tighter(cls, geometry: Geometry) -> list[Preset]:
        """The same, choosing four times a row."""
        return [replace(variant, strides_a_row=4) for variant in cls.sweep(geometry) if isinstance(variant, cls)]


@dataclass(frozen=True)
class SSD:
    """SSD (2510.18716, Algorithm 1): spatial heads keep the last W tokens, semantic heads the M with the largest sum of
    attention received, and nothing recent. tau, W and M are not published; here the limit fixes W.

    Attributes:
        threshold: heads whose semantic score exceeds it are semantic; the paper's tau.
        ratio: M / W.
        by_row: choose at row ends, the paper's buffer variant; otherwise at every token.
    """

    name: ClassVar[str] = "ssd"
    threshold: float = 0.5
    ratio: float = 1.0
    by_row: bool = False

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        if semantic_score is None:
            raise HeadscopeError(f"preset {self.name}: needs the heads' semantic scores; run `headscope heads` first.")
        semantic = self.semantic(semantic_score).float()
        weights = (1 - semantic, self.ratio * semantic)
        return at_its_largest(self, limit, semantic_score, weights, stride=row_stride(limit) if self.by_row else 1)

    def semantic(self, score: torch.Tensor) -> torch.Tensor:
        """bool [layers, kv_heads]: the heads that get heavy hitters."""
        return score > self.threshold

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """Three ratios at both strides, and two other thresholds."""
        even = [cls(0.5, ratio, by_row) for by_row in (False, True) for ratio in (0.5, 1.0, 2.0)]
        return [*even, cls(0.25, 1.0, True), cls(0.75, 1.0, True)]


@dataclass(frozen=True)
class Swapped(SSD):
    """A control: SSD with its two classes exchanged. If it does as well, the classes say nothing about what heads need."""

    name: ClassVar[str] = "swapped"

    def semantic(self, score: torch.Tensor) -> torch.Tensor:
        """See `SSD.semantic`."""
        return ~super().semantic(score)


@dataclass(frozen=True)
class RandomHeads(SSD):
    """A control: SSD with as many semantic heads, dealt to all places by `seed`."""

    name: ClassVar[str] = "random_heads"
    seed: int = 0

    def semantic(self, score: torch.Tensor) -> torch.Tensor:
        """See `SSD.semantic`."""
        dealt = torch.randperm(score.numel(), generator=torch.Generator().manual_seed(self.seed))
        return super().semantic(score).flatten()[dealt].view(score.shape)


@dataclass(frozen=True)
class Random:
    """Each head takes its size and its split from `seed`: what a search must beat by far."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def build(self, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
        """See `Preset.build`."""
        generator = torch.Generator().manual_seed(self.seed)
        heads = (limit.spec.shape.layers, limit.spec.shape.kv_heads)
        size = 0.25 + torch.rand(heads, generator=generator)
        share = torch.rand(heads, generator=generator)
        return at_its_largest(self, limit, semantic_score, (size * share, size * (1 - share)))

    @classmethod
    def sweep(cls, geometry: Geometry) -> list[Preset]:
        """Five seeds."""
        return [cls(seed) for seed in range(5)]
