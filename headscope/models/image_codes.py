"""Which tokens of a network's vocabulary are image codes: a slice of it, or a list where they lie scattered."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch

from headscope.errors import ModelError
from headscope.facts import shown


class ImageCodes:
    """The tokens of a model's image codes, in the order of the codes.

    Args:
        name: of the model, for messages.
        found: the first token that is a code and how many there are; or the token of each code, of three at least.

    Attributes:
        tokens: of code 0, 1, ...
        fact: what a fingerprint says of them; a list without a gap is its slice.

    Raises:
        ModelError: no such numbers, none, or a token twice.

    Example:
        ImageCodes("mine", [3, 12]) are tokens 3 to 14; ImageCodes("mine", [7, 3, 9]) are tokens 7, 3 and 9.
    """

    def __init__(self, name: str, found: Any) -> None:
        self.name, numbers = name, token_list(name, "codes", found)
        if len(numbers) < 2 or (len(numbers) == 2 and numbers[1] < 1):
            raise ModelError(
                f"{name}: codes are {shown(numbers)}, expected the first token that is a code and how many there are, or the "
                "token of every code."
            )
        self.tokens: Sequence[int] = range(numbers[0], sum(numbers)) if len(numbers) == 2 else tuple(numbers)
        if len(set(self.tokens)) < len(self.tokens):
            twice = next(one for place, one in enumerate(self.tokens) if one in self.tokens[:place])
            raise ModelError(f"{name}: token {twice} stands for two codes; expected a token of its own for each.")
        first = self.tokens[0]
        if self.tokens == tuple(range(first, first + len(self))):
            self.tokens = range(first, first + len(self))
        together = isinstance(self.tokens, range)
        self.fact: tuple[int, ...] = (first, len(self)) if together else tuple(self.tokens)
        self._table = None if together else torch.tensor(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return f"{self.tokens[0]} to {self.tokens[-1]}" if self._table is None else shown(list(self.tokens), 30)

    def check(self, words: int, row_end: int | None) -> None:
        """Refuse tokens that a vocabulary of so many words has not, or of which one ends rows.

        Raises:
            ModelError: see above.
        """
        if min(self.tokens) < 0 or max(self.tokens) >= words:
            raise ModelError(f"{self.name}: codes {self}, its vocabulary has {words}; expected tokens from 0 to {words - 1}.")
        if row_end in self.tokens:
            raise ModelError(f"{self.name}: row_end {row_end} is one of the codes {self}; expected a token of its own.")

    def to_tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 of any shape -> the same; a code behind the last, a row's end, gives any token."""
        if self._table is None:
            return codes + self.tokens[0]
        self._table = self._table.to(codes.device)
        return self._table[codes.clamp(max=len(self) - 1)]

    def of_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """[..., words] -> [..., codes]."""
        if self._table is None:
            return logits[..., self.tokens[0] : self.tokens[0] + len(self)]
        self._table = self._table.to(logits.device)
        return logits[..., self._table]


def token_list(name: str, what: str, found: Any) -> list[int]:
    """Whole numbers, of numpy or PyTorch too.

    Args:
        name: of the model, for the message.
        what: they are.
        found: what was given.

    Raises:
        ModelError: it is something else.
    """
    try:
        tokens = list(found)
        if not any(isinstance(one, (bool, str)) for one in tokens):
            return [index(one) for one in tokens]
    except TypeError:
        pass
    raise ModelError(f"{name}: {what} is {shown(found)}, expected tokens, a list of whole numbers such as [515].")
