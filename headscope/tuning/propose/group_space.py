"""The space around the best policy so far: what groups of heads keep, multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from headscope.policy import Limit, Policy
from headscope.tuning.config import BUCKETS
from headscope.tuning.propose.sizes import fit_near, merged, prompt_dropped
from headscope.tuning.propose.spaces import Number


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
        written = (self.around.bits, self.around.prompt, prompt_dropped(self.limit.spec), self.around.score)
        window, heavy, decay, bits, prompt, score = merged(window.round(), heavy.round(), self.buckets, decay, *written)
        return fit_near(
            window,
            heavy,
            self.limit,
            stride=self.around.stride,
            anchor=int(self.around.anchor.max()),
            decay=decay,
            semantic_score=self.semantic_score,
            bits=bits,
            prompt=prompt,
            score=score,
        )

    def _groups(self) -> torch.Tensor:
        """int64 [layers, kv_heads]: consecutive numbers of (run of layers, class)."""
        layers = self.limit.spec.shape.layers
        parts = min(self.PARTS, layers)
        run = (torch.arange(layers) * parts // layers)[:, None].expand_as(self.semantic_score)
        return torch.unique(2 * run + (self.semantic_score > 0.5), return_inverse=True)[1]
