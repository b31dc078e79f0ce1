"""What a file says of itself (metadata in JSON), checked as one whole before any of it is used.

A reader lists the fields that it needs, and what each is:

    FIELDS = {"stride": whole(1), "model": record({"name": TEXT, "layers": whole(1)}), "limit": or_null(OBJECT)}
    check(parsed(text, where), FIELDS, where)

Fields that the list does not name are left alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headscope.errors import DataError, HeadscopeError

MOST = 2**31 - 1
# What no console prints as it is: control characters, and halves of a character, which no UTF-8 can hold.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST = 500  # characters of a name, which sentences repeat


@dataclass(frozen=True)
class Kind:
    """What a field is.

    Attributes:
        expected: what the value has to be, in words, for the sentence.
        accepts: whether a value is that.
        required: whether the field has to be there.
        fields: those that an object must have or may have, by name.
    """

    expected: str
    accepts: Callable[[Any], bool]
    required: bool = True
    fields: Mapping[str, Kind] = field(default_factory=dict)


def whole(least: int = 0, most: int = MOST) -> Kind:
    """A whole number in a range; true and 1.0 are none."""
    return Kind(f"a whole number from {least:,} to {most:,}", lambda value: type(value) is int and least <= value <= most)


def one_of(*values: str) -> Kind:
    """One of some texts."""
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def record(fields: Mapping[str, Kind]) -> Kind:
    """An object with these fields."""
    return replace(OBJECT, fields=fields)


def or_null(kind: Kind) -> Kind:
    """That, or null, or not there."""
    return replace(kind, expected=f"null or {kind.expected}", accepts=lambda v: v is None or kind.accepts(v), required=False)


def optional(kind: Kind) -> Kind:
    """That, where it is there."""
    return replace(kind, required=False)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300 and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and not _UNPRINTABLE.search(value)


NUMBER = Kind("a finite number", _is_number)
TEXT = Kind(f"a text of at most {_LONGEST} characters that can be printed", _is_text)
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value)))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def parsed(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8 if it is bytes.
        where: the file and the field, which begin the sentence.

    Raises:
        DataError: it is no JSON, or nested so deep that nothing reads it.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON ({said(error)}), expected what headscope wrote there.") from None


def check(
    facts: Any, fields: Mapping[str, Kind], where: str, raises: type[HeadscopeError] = DataError, advice: str = ""
) -> dict[str, Any]:
    """`facts`, which has every field of `fields`, each of its kind.

    Args:
        facts: what was read.
        fields: what the reader needs.
        where: the file, which begins the sentence.
        raises: the error's class.
        advice: ends the sentence: what to do.

    Raises:
        HeadscopeError: of the class `raises`: the field, what was found, and what was expected.
    """
    if fault := _fault(facts, record(fields), ""):
        raise raises(f"{where}: {fault}{'; ' if advice else ''}{advice}.")
    return dict(facts)


def _fault(value: Any, kind: Kind, name: str) -> str:
    if not kind.accepts(value):
        return f"{f'{name} is' if name else 'holds'} {shown(value)}, expected {kind.expected}"
    for inner, other in kind.fields.items() if isinstance(value, dict) else ():
        full = f"{name}.{inner}" if name else inner
        if inner in value:
            fault = _fault(value[inner], other, full)
        else:
            fault = f"lacks {full}, expected {other.expected}" if other.required else ""
        if fault:
            return fault
    return ""


def shown(value: Any, most: int = 60) -> str:
    """A value as a sentence can hold it: JSON in one line, in plain letters, cut where it is long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return clipped(text, most)


def said(error: BaseException, most: int = 160) -> str:
    """What a library's error says, as a sentence can hold it: one line, cut where it is long, without its last full stop."""
    text = " ".join(_UNPRINTABLE.sub(" ", str(error)).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text).rstrip(".")
    return clipped(text, most)


def plain(name: str) -> str:
    """A name out of a file as a sentence can hold it: without quotes, in plain letters, cut where it is long."""
    return clipped(ascii(name)[1:-1])


def clipped(text: str, most: int = 60) -> str:
    """The beginning of a text that may be too long for a sentence."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
