"""Score kinds: what heavy tokens are compared by at a stride end, made of the attention that they have received.

- `received`: that attention itself, H2O's score (2306.14048) with the decay of the head;
- `value`: times the length (L2 norm) of the token's value, as attention reads it: attention to a short value changes little;
- `expected`: (received + FLOOR) * weight * length of the value. The weight, from a table in the policy file, is what a token at
  this place of the grid still receives from here on, over what it has usually received by now (+ FLOOR), both in the full cache
  of other images: a token that has received more than is usual for its place is worth more than the place.

`register_score` adds others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from headscope.errors import HeadscopeError

RECEIVED, VALUE, EXPECTED = "received", "value", "expected"
# Added to attention before it is compared with what is usual, in queries' worth: without it a place that usually receives next
# to nothing would decide.
FLOOR = 0.05


@dataclass(frozen=True)
class Candidates:
    """What a kind of score is told of the tokens of some heads of a layer, at a stride end.

    Attributes:
        received: float32 [B, h, n], attention received, as decay and per_visit have it.
        positions: int32 [B, h, n], which image tokens they are.
        t: the newest image token.
        lengths: gives float32 [B, h, n], the L2 norms of their values as attention reads them.
        weights: gives float32 [B, h, n], what the head's table says of them; 1 without a table.
    """

    received: torch.Tensor
    positions: torch.Tensor
    t: int
    lengths: Callable[[], torch.Tensor]
    weights: Callable[[], torch.Tensor]


Worth = Callable[[Candidates], torch.Tensor]


@dataclass(frozen=True)
class ScoreKind:
    """A kind of score.

    Attributes:
        worth: what each token is worth, [B, h, n] like its attention received: the largest stay, of equals the newest.
        by_table: whether a head needs a table of weights.
    """

    worth: Worth
    by_table: bool = False


SCORES: dict[str, ScoreKind] = {
    RECEIVED: ScoreKind(lambda seen: seen.received),
    VALUE: ScoreKind(lambda seen: seen.received * seen.lengths()),
    EXPECTED: ScoreKind(lambda seen: (seen.received + FLOOR) * seen.weights() * seen.lengths(), by_table=True),
}
# Those that headscope brings; policies say a head's kind as a place in such a list.
BUILT_IN = tuple(SCORES)


def register_score(name: str, worth: Worth, *, by_table: bool = False) -> None:
    """Add a kind of score of one's own: policies may name it, wherever it was registered before they are read.

    Example: `register_score("late", lambda seen: seen.received * (1 + seen.positions))` lets later tokens stay longer.

    Args:
        name: by which policies call it.
        worth: what each token is worth, [B, h, n], of `Candidates`; finite numbers, the largest stay.
        by_table: whether its heads need a table of weights, as `expected` does.

    Raises:
        HeadscopeError: the name is no identifier or is taken, or `worth` can't be called.
    """
    if not isinstance(name, str) or not name.isidentifier() or name in SCORES:
        raise HeadscopeError(
            f"score {name!r}: expected a name of its own, letters, digits and _; taken are {', '.join(SCORES)}."
        )
    if not callable(worth):
        raise HeadscopeError(f"score {name}: worth is {worth!r:.60}, expected a function of `Candidates`.")
    SCORES[name] = ScoreKind(worth, by_table)
