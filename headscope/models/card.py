"""headscope.toml, beside a network in transformers' format: how that network draws.

rows = 16
cols = 16
row_end = 514           # the token that ends each row, where there is one
codes = [0, 512]        # the first token that is an image code, and how many there are
start = [512]           # tokens before every image, where there are any
unconditional = [513]   # the same for the other stream of guidance, where there is one
guidance = 3.0          # 1, none, unless given
temperature = 1.0
top_k = 100             # all codes unless given

[prompts]               # where prompts mean something: tokens that take the place of `start`
cat = [515]
dog = [516]
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from headscope.errors import HeadscopeError, ModelError
from headscope.facts import NUMBER, TEXT, Kind, check, optional, said, shown, whole
from headscope.geometry import MOST_TOKENS, Geometry

CARD = "headscope.toml"
_TOKENS = Kind(
    "a list of tokens, such as [515]", lambda value: isinstance(value, list) and all(type(one) is int for one in value)
)
_CODES = Kind(
    "the first token that is a code and how many there are, such as [0, 512], or the token of every code",
    lambda value: _TOKENS.accepts(value) and len(value) >= 2,
)
_FIELDS = {
    **dict.fromkeys(("rows", "cols"), whole(1, MOST_TOKENS)),
    "codes": _CODES,
    **dict.fromkeys(("start", "unconditional"), optional(_TOKENS)),
    "row_end": optional(whole(0)),
    **dict.fromkeys(("guidance", "temperature"), optional(NUMBER)),
    "top_k": optional(whole(1)),
    "prompts": optional(Kind("a table of prompts, such as cat = [515]", lambda value: isinstance(value, dict))),
}


def is_raster_folder(folder: Path) -> bool:
    """Whether a folder says that its network draws."""
    return (folder / CARD).is_file()


def raster_prompts(folder: Path) -> list[str]:
    """The prompts that a folder's card names; none where they mean nothing.

    Raises:
        ModelError: see `read_card`.
    """
    return list(read_card(folder).get("prompts", {}))


def read_card(folder: Path) -> dict[str, Any]:
    """headscope.toml of a folder, with `geometry` in place of rows and cols.

    Raises:
        ModelError: it is no TOML, or names what it does not know, or another kind of value.
    """
    path = folder / CARD
    try:
        told: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as TOML ({said(error)}).") from None
    if unknown := [key for key in told if key not in _FIELDS]:
        raise ModelError(f"{path}: {shown(unknown[0])}: no such key; known are {', '.join(_FIELDS)}.")
    found = check(told, _FIELDS, str(path), ModelError)
    for prompt, ids in found.get("prompts", {}).items():
        if not TEXT.accepts(prompt) or not prompt.strip():
            raise ModelError(f"{path}: a prompt is named {shown(prompt)}, expected {TEXT.expected}, not an empty one.")
        if not _TOKENS.accepts(ids):
            raise ModelError(f"{path}: prompt {shown(prompt)} is {shown(ids)}, expected {_TOKENS.expected}.")
    try:
        geometry = Geometry(found.pop("rows"), found.pop("cols"), int("row_end" in found))
    except HeadscopeError as error:
        raise ModelError(f"{path}: {error}") from None
    return {**found, "codes": tuple(found["codes"]), "geometry": geometry}
