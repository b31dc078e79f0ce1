"""Grading prompts: what an image is asked to show, in the shape of GenEval's `evaluation_metadata.jsonl`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.prompt_files import Asked, read_asked
from headscope.stickereval.detector import known_names

PROMPTS = Path(__file__).parent / "stickereval.jsonl"
TAGS = ("single", "style", "two", "counting", "position")
GENEVAL_TAGS = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
RELATIONS = ("left of", "right of", "above", "below")
_SHAPE = '{"tag": ..., "include": [{"class": ..., "count": ...}], "prompt": ...}'


@dataclass(frozen=True)
class Wanted:
    """One entry of `include`: what must be there.

    Attributes:
        name: class of the things.
        count: how many.
        style: of the things, None for any.
        relation: one of RELATIONS, in which they lie to those of entry `other`, None for anywhere.
        other: number of that entry in `include`; None without a relation.
    """

    name: str
    count: int
    style: str | None = None
    relation: str | None = None
    other: int | None = None


@dataclass(frozen=True)
class GradingPrompt:
    """What an image is asked to show.

    Attributes:
        tag: one of TAGS, the category of the prompt.
        include: what must be there.
        prompt: what the model is told.
    """

    tag: str
    include: tuple[Wanted, ...]
    prompt: str


def read_grading_prompts(path: str | Path = PROMPTS) -> list[GradingPrompt]:
    """Read JSON lines such as
    `{"tag": "counting", "include": [{"class": "lemon", "count": 3}], "prompt": "three lemons"}`; blank lines are left out.

    Tag `style` wants a `style` beside the class; tag `position` a `position` such as `["left of", 0]`: left of the things of
    the first entry. That is GenEval's shape (Ghosh et al., 2310.11513), with styles where it has colours.

    Raises:
        DataError: missing or empty file, or a line that is broken or asks for what the detector can't name.
    """
    return grading_prompts(read_asked(path))


def grading_prompts(asked: Sequence[Asked]) -> list[GradingPrompt]:
    """What StickerEval is to find for each prompt; errors as those of `read_grading_prompts`."""
    classes, styles = known_names()
    return [_Facts(one.where or f"prompt {number}", classes, styles).read(one) for number, one in enumerate(asked, 1)]


def grading_if_ours(asked: Sequence[Asked]) -> list[GradingPrompt] | None:
    """`grading_prompts`, if these are StickerEval's kinds; None for GenEval's own and for plain ones."""
    includes = [one.facts["include"] for one in asked if "include" in one.facts]
    if not includes:
        return None
    tags = {str(one.facts.get("tag")) for one in asked}
    classes = known_names()[0]
    things = [thing for include in includes if isinstance(include, list) for thing in include]
    ours = tags <= set(TAGS) and all(isinstance(thing, dict) and thing.get("class") in classes for thing in things)
    if tags & (set(TAGS) - GENEVAL_TAGS) or not tags & GENEVAL_TAGS or ours:
        return grading_prompts(asked)
    return None


@dataclass(frozen=True)
class _Facts:
    """Reads what one line says; `where` begins every complaint."""

    where: str
    classes: list[str]
    styles: list[str]

    def read(self, asked: Asked) -> GradingPrompt:
        include, tag = asked.facts.get("include"), asked.facts.get("tag")
        if not isinstance(include, list) or not include:
            raise DataError(f'{self.where} has no list "include" of what must be in the image; expected {_SHAPE}.')
        self._known("tag", tag, TAGS)
        wanted = tuple(self._wanted(entry, place, len(include)) for place, entry in enumerate(include))
        self._complete(str(tag), wanted)
        return GradingPrompt(str(tag), wanted, asked.prompt)

    def _wanted(self, entry: Any, place: int, entries: int) -> Wanted:
        if not isinstance(entry, dict):
            raise DataError(f'{self.where}: entry {place} of "include" is {entry!r}; expected {{"class": ..., "count": ...}}.')
        self._known("class", entry.get("class"), self.classes)
        count = entry.get("count", 1)
        if type(count) is not int or count < 1:
            raise DataError(f"{self.where}: count {count!r} of {entry['class']}; expected a whole number from 1 on.")
        style, position = entry.get("style"), entry.get("position")
        if style is not None:
            self._known("style", style, self.styles)
        if position is None:
            return Wanted(entry["class"], count, style)
        if not isinstance(position, list) or len(position) != 2:
            raise DataError(f'{self.where}: position {position!r}; expected a pair such as ["left of", 0].')
        relation, other = position
        self._known("relation", relation, RELATIONS)
        if type(other) is not int or not 0 <= other < entries or other == place:
            raise DataError(
                f"{self.where}: position {position!r} points to entry {other!r}; expected the number of another entry of "
                f'"include" (0 to {entries - 1}).'
            )
        return Wanted(entry["class"], count, style, relation, other)

    def _complete(self, tag: str, include: tuple[Wanted, ...]) -> None:
        """A tag grades something; say so where it is missing."""
        if tag == "style" and include[0].style is None:
            raise DataError(f'{self.where}: tag style without a style; write one beside the class, as in "style": "noto".')
        if tag == "position" and all(wanted.relation is None for wanted in include):
            raise DataError(f'{self.where}: tag position without a position; write one, such as "position": ["left of", 0].')
        if tag in ("two", "position") and len(include) < 2:
            raise DataError(f'{self.where}: tag {tag} with {len(include)} entry in "include"; expected two things.')

    def _known(self, what: str, name: Any, known: Sequence[str]) -> None:
        if name not in known:
            near = difflib.get_close_matches(str(name).lower(), known, 3, 0.5)
            advice = f"nearest known: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise DataError(f"{self.where}: unknown {what} {name!r}; {advice}.")
