"""Classes as prompts: a number, or a name from a list in the model's folder."""

from __future__ import annotations

from pathlib import Path

from headscope.errors import DataError, ModelError
from headscope.facts import said, shown

CLASS_FILE = "classes.txt"
PROMPTS = 32  # classes that a run takes where none are named


class Classes:
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
        if prompt.strip().isdecimal():
            number = int(prompt)
            if number >= self.count:
                raise DataError(f"class {number}: {self.folder.name} has classes 0 to {self.count - 1}.")
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


def _plain(name: str) -> str:
    return name.strip().casefold()


def _read(file: Path, count: int) -> list[str]:
    """The names, none where there is no file."""
    if not file.is_file():
        return []
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as text ({said(error)}).") from None
    if len(names) != count:
        raise ModelError(
            f"{file}: names {len(names)} classes, the transformer knows {count}: write a name a line, from class 0."
        )
    return names
