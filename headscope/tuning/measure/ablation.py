"""What does each head need: the newest tokens, the heaviest, or both? Cause, not description.

Each KV head in turn keeps, at equal bytes, a window only, heavy tokens only, or half of each, while all others keep
everything; what is lost is measured by replay. If SSD's classes (2510.18716) say what heads need, spatial heads lose less with
the window and semantic heads with the heavy tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from headscope.errors import BudgetError, DataError
from headscope.heads import SEMANTIC
from headscope.intervals import rank_correlation
from headscope.policy import CacheSpec, parse_share
from headscope.tuning.measure.options import Option
from headscope.tuning.measure.sensitivity import NEGLIGIBLE

KINDS = ("window", "heavy", "both")
_SAID = {"window": "the window", "heavy": "heavy tokens", "both": "half of each"}


def equal_options(keep: str | float, spec: CacheSpec, stride: int) -> dict[str, Option]:
    """The three choices of one head within its share of a byte limit: `window`, `heavy`, and `both`, half of each.

    A heavy head pays for its scores and for the buffer of a stride, as allocated; so it keeps fewer tokens than a window does.

    Args:
        keep: share of the plain cache, "20%" or 0.2.
        spec: what it is counted for.
        stride: of heavy heads, in tokens.

    Raises:
        BudgetError: the share is too small for one heavy token and one recent one.
    """
    shape = spec.shape
    limit = parse_share(keep) * spec.full_bytes / (spec.rows * shape.layers * shape.kv_heads)
    most = shape.geometry.tokens - 1

    def largest(kind: str) -> tuple[int, int]:
        found = (-1, -1)
        for tokens in range(1, most + 1):
            window = {"window": tokens, "heavy": 0, "both": tokens // 2}[kind]
            if int(spec.head_bytes(window, tokens - window, 0, stride)) <= limit:
                found = (window, tokens - window)
        return found

    sizes = {kind: largest(kind) for kind in KINDS}
    if any(max(size) < 1 for size in sizes.values()):
        raise BudgetError(
            f"keep {keep}: a head's share of {limit:,.0f} bytes holds no heavy token beside a buffer of {stride} tokens; "
            "keep more, or choose a shorter stride."
        )
    return {kind: Option(*size) for kind, size in sizes.items()}


@dataclass(frozen=True)
class HeadAblation:
    """What the heads need at one budget.

    Attributes:
        keep: the budget as given.
        options: what each of KINDS was.
        table: a row a KV head: layer, kv_head, class, semantic_score, window, heavy, both (nats a token lost by that choice
            alone), heavy_preference = (window - heavy) / (window + heavy), 1 where only heavy tokens help and -1 where only
            the window does, no number where neither loses anything; best, the choice of the three that loses least.
        correlation: Spearman's of the semantic score with `heavy_preference`.
        low: end of its 95 % interval, by bootstrap over heads.
        high: the other end.
        by_class: summed losses if each head gets what its class says, nats a token.
        by_opposite: if it gets the other.
        by_best: if it gets the better.
    """

    keep: str
    options: dict[str, Option]
    table: pd.DataFrame
    correlation: float
    low: float
    high: float
    by_class: float
    by_opposite: float
    by_best: float

    @property
    def right(self) -> float:
        """Share of the heads that lose anything whose class names the better of window and heavy."""
        felt = self.table[self.table["heavy_preference"].notna()]
        return float(((felt["heavy_preference"] > 0) == (felt["class"] == SEMANTIC)).mean())

    def sentence(self) -> str:
        """The answer."""
        felt = int(self.table["heavy_preference"].notna().sum())
        between = f"rank correlation {self.correlation:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f}, {felt} heads"
        counts = self.table["best"].value_counts()
        best = ", ".join(f"{_SAID[kind]} in {counts.get(kind, 0)} heads" for kind in KINDS)
        if self.low > 0:
            answer = "The semantic score predicts what a head needs"
        elif self.high < 0:
            answer = "The semantic score predicts the opposite of what a head needs"
        else:
            answer = "The semantic score does not predict what a head needs"
        return (
            f"At {self.keep}: {answer} ({between}). Each head given what its class says, alone, the losses sum to "
            f"{self.by_class:.4f}, given the other {self.by_opposite:.4f}, given the better {self.by_best:.4f} nats a token; "
            f"the class names the better for {self.right:.0%}. Of all three, most is kept by {best}."
        )


def ablate_heads(
    losses: pd.DataFrame, heads: pd.DataFrame, options: dict[str, Option], keep: str, seed: int = 0
) -> HeadAblation:
    """Does the graded score predict which choice a head needs?

    Args:
        losses: of `measure_sensitivity` with these options.
        heads: of `Heads.table`.
        options: what each of KINDS is, of `equal_options`.
        keep: the budget as given, for messages and the result.
        seed: of the bootstrap over heads.

    Raises:
        DataError: the losses lack a head at one of the options.
    """
    wide = heads[["layer", "kv_head", "class", "semantic_score"]].reset_index(drop=True)
    for kind, option in options.items():
        mine = losses[(losses["window"] == option.window) & (losses["heavy"] == option.heavy)]
        wide = wide.merge(mine[["layer", "kv_head", "loss"]].rename(columns={"loss": kind}), how="left")
    if wide[list(KINDS)].isna().any(axis=None):
        missing = int(wide[list(KINDS)].isna().any(axis=1).sum())
        raise DataError(
            f"The table of losses lacks {missing} of {len(wide)} heads at {keep}; delete sensitivity.parquet from the run's "
            "folder, and the same command measures them all."
        )
    wide[list(KINDS)] = wide[list(KINDS)].clip(lower=0.0)
    either = wide["window"] + wide["heavy"]
    wide["heavy_preference"] = ((wide["window"] - wide["heavy"]) / either).where(
        wide[["window", "heavy"]].max(axis=1) > NEGLIGIBLE
    )
    wide["best"] = wide[list(KINDS)].idxmin(axis=1)
    felt = wide[wide["heavy_preference"].notna()]
    correlation, low, high = rank_correlation(felt["semantic_score"].to_numpy(), felt["heavy_preference"].to_numpy(), seed)
    semantic = wide["class"] == SEMANTIC
    return HeadAblation(
        keep,
        options,
        wide,
        correlation,
        low,
        high,
        by_class=float(wide["heavy"].where(semantic, wide["window"]).sum()),
        by_opposite=float(wide["window"].where(semantic, wide["heavy"]).sum()),
        by_best=float(wide[["window", "heavy"]].min(axis=1).sum()),
    )
