"""Classes as prompts: a number, or a name from a list in the model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from headscope.errors import DataError, ModelError
from headscope.facts import clipped, shown
from headscope.models.protocol import Prefix
from headscope.storage import read_lines

CLASS_FILE = "classes.txt"
_DIGITS = 1000  # from here on a number is none of a class, and from 4,300 on Python does not read it
PROMPTS = 32  # classes that a run takes where none are named


class ClassNames:
    """The classes that a model knows.

    Args:
        folder: where classes.txt may lie, a name a line, from class 0 on; a line may hold several names, between commas.
        count: how many there are.

    Raises:
        ModelError: another number of names than of classes.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._names = _read(folder / CLASS_FILE, count)
        self._numbers: dict[str, list[int]] = {}
        for number, line in enumerate(self._names):
            for name in {_plain(part) for part in (line, *line.split(","))}:
                self._numbers.setdefault(name, []).append(number)

    def number(self, prompt: str) -> int:
        """The class that a prompt means.

        Raises:
            DataError: none, or several.
        """
        if prompt.strip().removeprefix("-").isdecimal():
            number = int(prompt) if len(prompt) < _DIGITS else self.count
            if not 0 <= number < self.count:
                raise DataError(f"class {clipped(prompt.strip())}: {self.folder.name} has classes 0 to {self.count - 1}.")
            return number
        found = self._numbers.get(_plain(prompt), [])
        if len(found) > 1:
            raise DataError(f"prompt {shown(prompt)}: names the classes {', '.join(map(str, found))}; give one by its number.")
        if not found:
            some = f", or a name of {CLASS_FILE} such as {self._names[0]}" if self._names else ""
            raise DataError(
                f"prompt {shown(prompt)}: no class of {self.folder.name}, which reads no captions; expected a "
                f"number from 0 to {self.count - 1}{some}."
            )
        return found[0]

    def name(self, number: int) -> str:
        """A class by its name where it has one, else by its number."""
        return self._names[number] if number < len(self._names) else str(number)

    def prompts(self) -> list[str]:
        """Classes evenly spread over all, for a run that names none: by name, or by number where the name is not one's own."""
        most = min(PROMPTS, self.count)
        numbers = [place * self.count // most for place in range(most)]
        return [self.name(one) if self._numbers.get(_plain(self.name(one))) == [one] else str(one) for one in numbers]


class Classes:
    """A prefix of one token, the class; the unconditional stream's is the row behind the last, no class.

    Args:
        names: of the classes.
        table: [classes + 1, C], embeddings.
    """

    def __init__(self, names: ClassNames, table: nn.Embedding) -> None:
        self.names, self.table = names, table

    def prefix(self, prompts: Sequence[str]) -> Prefix:
        """ids and masks [B, 1].

        Raises:
            DataError: a prompt that is no class.
        """
        numbers = [self.names.number(prompt) for prompt in prompts]
        ids = torch.tensor(numbers, device=self.table.weight.device)[:, None]
        mask = torch.ones_like(ids)
        return Prefix(ids, mask, torch.full_like(ids, self.names.count), mask, self.strings(ids[:, 0]))

    def strings(self, ids: torch.Tensor) -> list[str]:
        """Classes [P] by their names."""
        return [self.names.name(one) for one in ids.tolist()]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Classes [B, P] -> [B, P, C]."""
        return self.table(ids)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _read(file: Path, count: int) -> list[str]:
    """The names, none where there is no file."""
    if not file.is_file():
        return []
    names = [line.text.strip() for line in read_lines(file, "list of classes")]
    if len(names) != count:
        raise ModelError(f"{file}: names {len(names)} classes, the transformer knows {count}: write a name a line.")
    return names
