"""Spaces: the few numbers that a study varies, and the policy that each point of them stands for.

`ClassSpace` (class_space.py) holds numbers for the two classes of heads; every preset is a point of it. `TableSpace` holds some
numbers around the allocator's answer: where single-head losses do not add up (early layers against late, semantic heads
against spatial), the table is re-weighted and solved again, so that an allocation keeps the sizes that were measured in
place of scaling a row-above head off its cliff. `GroupSpace` (group_space.py) multiplies what groups of heads keep, around the
best policy so far. All build policies within the byte limit at every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from headscope.policy import Limit, Policy
from headscope.tuning.config import BUCKETS
from headscope.tuning.measure.options import ANCHOR, Losses
from headscope.tuning.propose.knapsack import solve
from headscope.tuning.propose.sizes import fit_near, merged, prompt_dropped


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


@dataclass
class TableSpace:
    """Around the allocator's answer.

    `early`, `late`, `semantic`, `heavy`, `bits` and `prompt` are log2 weights on the table's losses of the first and last third
    of the layers, of semantic heads (times score minus mean score), of options with heavy tokens, of options below 16 bits (the
    price of bits) and of those that drop the prompt; the knapsack is solved again with them. `decay` multiplies each option's
    decay. `blend` moves all heads' tokens that share of the way to `towards`.

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
            *(
                Number(name, -1.0, 1.0, 0.0)
                for name in ("bits", "prompt")
                if len({getattr(option, name) for option in self.losses.options[:-1]}) > 1
            ),
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
        written = (solved.bits, solved.prompt, prompt_dropped(self.limit.spec), solved.score)
        window, heavy, decay, bits, prompt, score = merged(window.round(), heavy.round(), self.buckets, decay, *written)
        return fit_near(
            window,
            heavy,
            self.limit,
            stride=solved.stride,
            anchor=int(values["anchor"]),
            decay=decay,
            semantic_score=self.semantic_score,
            bits=bits,
            prompt=prompt,
            score=score,
        )

    def _weight(self, values: Mapping[str, float]) -> np.ndarray:
        layers = np.arange(self.limit.spec.shape.layers) / max(self.limit.spec.shape.layers - 1, 1)
        third = np.where(layers < 1 / 3, values["early"], np.where(layers > 2 / 3, values["late"], 0.0))
        score = self.semantic_score.double().numpy()
        head = third[:, None] + values["semantic"] * (score - score.mean())
        option = np.array([values["heavy"] if option.heavy else 0.0 for option in self.losses.options])
        option += np.array([values.get("bits", 0.0) if option.bits < 16 else 0.0 for option in self.losses.options])
        option += np.array([0.0 if option.prompt else values.get("prompt", 0.0) for option in self.losses.options])
        return np.exp2(head[:, :, None] + option)
