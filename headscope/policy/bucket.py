"""A bucket: KV heads of one layer that share all numbers of a policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from headscope.policy.score_table import ScoreTable
from headscope.policy.scores import RECEIVED


@dataclass(frozen=True)
class Bucket:
    """KV heads of one layer that remember alike; the cache stores them in one dense tensor.

    Attributes:
        heads: their numbers.
        window: as in `Policy`, here one number for all of them.
        heavy: likewise.
        anchor: likewise.
        decay: likewise.
        per_visit: likewise.
        bits: likewise.
        whole_prompt: whether they keep more of the prompt than its first and last token.
        score: kind of score by which heavy tokens are chosen.
        table: weights of these heads, in their order, where the kind needs them.
    """

    heads: tuple[int, ...]
    window: int
    heavy: int
    anchor: int
    decay: float
    per_visit: bool
    bits: int = 16
    whole_prompt: bool = True
    score: str = RECEIVED
    table: ScoreTable | None = field(default=None, compare=False)
