"""Spaces: the few numbers that a study varies, and the policy that each point of them stands for.

`ClassSpace` holds a handful of numbers for the two classes of heads; every preset is a point of it. `TableSpace` holds some
numbers around the allocator's answer: where single-head losses do not add up (early layers against late, semantic heads
against spatial), the table is re-weighted and solved again, so that an allocation keeps the sizes that were measured in
place of scaling a row-above head off its cliff. `GroupSpace` multiplies what groups of heads keep, around the best policy
so far. All build policies within the byte limit at every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from headscope.errors import BudgetError
from headscope.policy import Limit, ModelShape, Policy
from headscope.tuning.config import BUCKETS
from headscope.tuning.measure.options import ANCHOR, Losses
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.sizes import fit_near, merged


@dataclass(frozen=True)
class Number:
    """One number of a space.

    Attributes:
        name: by which a point of the space gives its value.
        low: the least value.
        high: the largest value.
        neutral: the value at which it changes nothing.
        whole: whole numbers only; otherwise continuous.
    """

    name: str
    low: float
    high: float
    neutral: float
    whole: bool = False

    def distribution(self) -> BaseDistribution:
        """Optuna's description of it (never a categorical: not every sampler can use those)."""
        return IntDistribution(int(self.low), int(self.high)) if self.whole else FloatDistribution(self.low, self.high)

    def suggest(self, trial: Trial) -> float:
        """Ask the trial's sampler for a value."""
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        return trial.suggest_float(self.name, self.low, self.high)


class Space(Protocol):
    """What the study needs: the numbers, and the policy at a point.

    Attributes:
        numbers: what the study varies.
    """

    numbers: tuple[Number, ...]

    def build(self, values: Mapping[str, float]) -> Policy:
        """The policy at `values`, within the byte limit."""
        ...


def neutral(space: Space) -> dict[str, float]:
    """The point of a space where no number changes anything."""
    return {number.name: number.neutral for number in space.numbers}


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

        Every preset with a stride in `strides` is such a point, so that the sampler learns from presets too.
        """
        size = (policy.window + policy.heavy).double()
        if policy.stride not in self.strides or bool((size == 0).any()) or len(policy.anchor.unique()) > 1:
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
        try:
            there = self.build(values)
        except BudgetError:
            return None
        near = (there.window - policy.window).abs().max() <= 1 and (there.heavy - policy.heavy).abs().max() <= 1
        return values if near else None


@dataclass
class TableSpace:
    """Around the allocator's answer.

    `early`, `late`, `semantic`, `heavy` and `bits` are log2 weights on the table's losses of the first and last third of the
    layers, of semantic heads (times score minus mean score), of options with heavy tokens and of options below 16 bits (the
    price of bits); the knapsack is solved again with them. `decay` multiplies each option's decay. `blend` moves all heads'
    tokens that share of the way to `towards`.

    Attributes:
        limit: the byte limit, which every point keeps to.
        semantic_score: float32 [layers, kv_heads] in [0, 1].
        strides: what the number `stride` is an index into, in tokens.
        losses: the table that is re-weighted.
        towards: the best class-level policy.
        buckets: most kinds of heads in a layer.
        nodes: branches that the exact solver may try at a point; 0 leaves it to the relaxation.
    """

    limit: Limit
    semantic_score: torch.Tensor
    strides: Sequence[int]
    losses: Losses
    towards: Policy
    buckets: int = BUCKETS
    nodes: int = 0
    numbers: tuple[Number, ...] = field(init=False)

    def __post_init__(self) -> None:
        nearest = min(range(len(self.strides)), key=lambda index: abs(self.strides[index] - self.losses.stride))
        self.numbers = (
            Number("early", -1.0, 1.0, 0.0),
            Number("late", -1.0, 1.0, 0.0),
            Number("semantic", -1.5, 1.5, 0.0),
            Number("heavy", -1.0, 1.0, 0.0),
            *([Number("bits", -1.0, 1.0, 0.0)] if len({option.bits for option in self.losses.options[:-1]}) > 1 else ()),
            Number("blend", 0.0, 0.3, 0.0),
            Number("decay", 0.0, 1.0, 1.0),
            Number("anchor", 0, 4, ANCHOR, whole=True),
            Number("stride", 0, len(self.strides) - 1, nearest, whole=True),
        )

    def build(self, values: Mapping[str, float]) -> Policy:
        """The allocator's policy for the re-weighted table, blended."""
        solved = solve(
            self.losses.reweighted(self._weight(values)),
            self.limit,
            self.strides[int(values["stride"])],
            self.buckets,
            anchor=int(values["anchor"]),
            fading=values["decay"],
            nodes=self.nodes,
        ).replace(semantic_score=self.semantic_score)
        blend = values["blend"]
        if blend == 0.0:
            return solved
        window = torch.lerp(solved.window.float(), self.towards.window.float(), blend)
        heavy = torch.lerp(solved.heavy.float(), self.towards.heavy.float(), blend)
        decay = torch.where(solved.heavy > 0, solved.decay, values["decay"] * self.towards.decay)
        window, heavy, decay, bits = merged(window.round(), heavy.round(), self.buckets, decay, solved.bits)
        return fit_near(
            window,
            heavy,
            self.limit,
            stride=solved.stride,
            anchor=int(values["anchor"]),
            decay=decay,
            semantic_score=self.semantic_score,
            bits=bits,
        )

    def _weight(self, values: Mapping[str, float]) -> np.ndarray:
        layers = np.arange(self.limit.spec.shape.layers) / max(self.limit.spec.shape.layers - 1, 1)
        third = np.where(layers < 1 / 3, values["early"], np.where(layers > 2 / 3, values["late"], 0.0))
        score = self.semantic_score.double().numpy()
        head = third[:, None] + values["semantic"] * (score - score.mean())
        option = np.array([values["heavy"] if option.heavy else 0.0 for option in self.losses.options])
        option += np.array([values.get("bits", 0.0) if option.bits < 16 else 0.0 for option in self.losses.options])
        return np.exp2(head[:, :, None] + option)


@dataclass
class GroupSpace:
    """Around a policy, by groups of heads: log2 multipliers of what they keep, then the projection onto the limit.

    `window_1` .. and `heavy_1` .. multiply the windows and the heavy sets of a group: the semantic or the spatial heads of
    one of at most PARTS runs of layers. `decay` is the mean decay of heads with heavy tokens: all move by the same factor.

    Attributes:
        limit: the byte limit, which every point keeps to.
        semantic_score: float32 [layers, kv_heads] in [0, 1]; semantic heads are those above 0.5.
        around: the policy that no multiplier changes.
        buckets: most kinds of heads in a layer.
    """

    PARTS = 3

    limit: Limit
    semantic_score: torch.Tensor
    around: Policy
    buckets: int = BUCKETS
    numbers: tuple[Number, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = self._groups()
        count = int(self.groups.max()) + 1
        sizes = [Number(f"{what}_{group}", -1.0, 1.0, 0.0) for what in ("window", "heavy") for group in range(count)]
        heavy = self.around.heavy > 0
        self.decay = float(self.around.decay[heavy].mean()) if bool(heavy.any()) else 1.0
        self.numbers = (*sizes, Number("decay", 0.0, 1.0, self.decay))

    def build(self, values: Mapping[str, float]) -> Policy:
        """The policy at `values`: sizes multiplied, then projected onto the limit."""
        factors = {
            what: torch.tensor([2.0 ** values[f"{what}_{group}"] for group in range(int(self.groups.max()) + 1)])[self.groups]
            for what in ("window", "heavy")
        }
        window, heavy = self.around.window * factors["window"], self.around.heavy * factors["heavy"]
        mean = values["decay"]
        decay = (self.around.decay * (mean / self.decay)).clamp(max=1.0) if self.decay else torch.full_like(window, mean)
        window, heavy, decay, bits = merged(window.round(), heavy.round(), self.buckets, decay, self.around.bits)
        return fit_near(
            window,
            heavy,
            self.limit,
            stride=self.around.stride,
            anchor=int(self.around.anchor.max()),
            decay=decay,
            semantic_score=self.semantic_score,
            bits=bits,
        )

    def _groups(self) -> torch.Tensor:
        """int64 [layers, kv_heads]: consecutive numbers of (run of layers, class)."""
        layers = self.limit.spec.shape.layers
        parts = min(self.PARTS, layers)
        run = (torch.arange(layers) * parts // layers)[:, None].expand_as(self.semantic_score)
        return torch.unique(2 * run + (self.semantic_score > 0.5), return_inverse=True)[1]


def _falling(shape: ModelShape, slope: float) -> torch.Tensor:
    """float32 [layers, 1]: 1 + slope at the first layer, 1 - slope at the last."""
    place = torch.linspace(1.0, -1.0, shape.layers) if shape.layers > 1 else torch.zeros(1)
    return (1 + slope * place)[:, None]
