"""Numbers for the two classes of heads: a space that every preset is a point of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from headscope.errors import BudgetError
from headscope.policy import Limit, ModelShape, Policy
from headscope.tuning.propose.sizes import fit_near
from headscope.tuning.propose.spaces import Number

# The bits of semantic heads and of spatial ones.
BITS_OF = ("bits_semantic", "bits_spatial")


@dataclass
class ClassSpace:
    """Sizes by class and layer.

    A head's size (window + heavy, before projection) is `2 ** ratio` for semantic heads and 1 for spatial ones, times
    `1 + slope * (1 - 2 * layer / (layers - 1))` (positive: early layers keep more); of it `heavy_spatial` or
    `heavy_semantic` is heavy. Heads whose semantic score exceeds `threshold` are semantic. `bits_spatial` and `bits_semantic`
    are indices into `bits`, where there is a choice.

    Attributes:
        limit: the byte limit, which every point keeps to.
        semantic_score: float32 [layers, kv_heads] in [0, 1].
        strides: what the number `stride` is an index into, in tokens.
        bits: of a kept number, what a class may have.
    """

    limit: Limit
    semantic_score: torch.Tensor
    strides: Sequence[int]
    bits: Sequence[int] = (16,)
    numbers: tuple[Number, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = (
            Number("threshold", 0.0, 1.0, 0.5),
            Number("ratio", -3.0, 3.0, 0.0),
            Number("heavy_spatial", 0.0, 1.0, 0.0),
            Number("heavy_semantic", 0.0, 1.0, 0.5),
            Number("slope", -0.9, 0.9, 0.0),
            Number("decay", 0.0, 1.0, 1.0),
            Number("anchor", 0, self.limit.spec.shape.geometry.stride_row, 0, whole=True),
            Number("stride", 0, len(self.strides) - 1, len(self.strides) - 1, whole=True),
            *(Number(name, 0, len(self.bits) - 1, 0, whole=True) for name in BITS_OF if len(self.bits) > 1),
        )

    def build(self, values: Mapping[str, float]) -> Policy:
        """The class-level policy at `values`, projected onto the limit."""
        semantic = self.semantic_score > values["threshold"]
        size = torch.where(semantic, 2.0 ** values["ratio"], 1.0) * _falling(self.limit.spec.shape, values["slope"])
        share = torch.where(semantic, values["heavy_semantic"], values["heavy_spatial"])
        of_semantic, of_spatial = (torch.tensor(self.bits[int(values.get(name, 0))]) for name in BITS_OF)
        return fit_near(
            size * (1 - share),
            size * share,
            self.limit,
            stride=self.strides[int(values["stride"])],
            anchor=int(values["anchor"]),
            decay=values["decay"],
            semantic_score=self.semantic_score,
            bits=torch.where(semantic, of_semantic, of_spatial).to(torch.uint8),
        )

    def locate(self, policy: Policy) -> dict[str, float] | None:
        """The point whose policy keeps what `policy` keeps, to one token a head; None where there is none.

        Every preset with a stride in `strides`, and anchors of a row at most, is such a point: the sampler learns from it too.
        """
        size = (policy.window + policy.heavy).double()
        if policy.stride not in self.strides or bool((size == 0).any()) or len(policy.anchor.unique()) > 1:
            return None
        if bool(policy.drops_prompt.any()) or policy.other_scores:
            return None
        bits = policy.bits.unique().tolist()
        if len(bits) > 1 or bits[0] not in self.bits:
            return None
        heavy, share = policy.heavy > 0, policy.heavy.double() / size
        uniform = bool(heavy.all()) or not bool(heavy.any())
        threshold, ratio = 0.5, 0.0
        if not uniform:
            low, high = self.semantic_score[~heavy].max(), self.semantic_score[heavy].min()
            if low >= high:
                return None
            threshold = float((low + high) / 2)
            ratio = float(torch.log2(size[heavy].mean() / size[~heavy].mean()).clamp(-3, 3))
        by_layer = size.mean(1)
        values: dict[str, float] = {
            "threshold": threshold,
            "ratio": ratio,
            "heavy_spatial": float(share.mean()) if uniform else 0.0,
            "heavy_semantic": float(share[heavy].mean()) if bool(heavy.any()) else 0.0,
            "slope": float(((by_layer[0] - by_layer[-1]) / (by_layer[0] + by_layer[-1])).clamp(-0.9, 0.9)) if uniform else 0.0,
            "decay": float(policy.decay[heavy].mean()) if bool(heavy.any()) else 1.0,
            "anchor": int(policy.anchor.max()),
            "stride": list(self.strides).index(policy.stride),
            **{number.name: list(self.bits).index(bits[0]) for number in self.numbers if number.name in BITS_OF},
        }
        if any(not number.low <= values[number.name] <= number.high for number in self.numbers):
            return None
        try:
            there = self.build(values)
        except BudgetError:
            return None
        near = (there.window - policy.window).abs().max() <= 1 and (there.heavy - policy.heavy).abs().max() <= 1
        return values if near else None


def _falling(shape: ModelShape, slope: float) -> torch.Tensor:
    """float32 [layers, 1]: 1 + slope at the first layer, 1 - slope at the last."""
    place = torch.linspace(1.0, -1.0, shape.layers) if shape.layers > 1 else torch.zeros(1)
    return (1 + slope * place)[:, None]
