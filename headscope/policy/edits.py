"""Edits of a policy as a TOML file:

    [[edit]]
    layers = "4-7"                # or 4, or [4, 5]; numbers from 0
    heads = "0,3"                 # KV heads; all where it is left out
    window = 24                   # and heavy, anchor, decay, per_visit and prompt = true or false, bits = 16, 8 or 4,
                                  # score = "value" or another kind

    [[edit]]
    layers = [0]
    from = "other.safetensors"    # takes these heads of another policy of the same shape, or of a shipped one by its name

Later edits win. A path counts from the folder of the TOML file.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.facts import FLAG, NUMBER, TEXT, Kind, check, clipped, optional, plain, said, whole
from headscope.geometry import MOST_TOKENS
from headscope.policy.merge import Edit
from headscope.policy.policy import Policy
from headscope.policy.shipped import shipped
from headscope.reading import is_there
from headscope.storage import read_text

_MOST = 2**12  # layers or heads, as in a policy file
_RANGES = re.compile(r"\s*\d{1,4}\s*(-\s*\d{1,4}\s*)?(,\s*\d{1,4}\s*(-\s*\d{1,4}\s*)?)*")


def _accepted(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_RANGES.fullmatch(value))
    numbers = value if isinstance(value, list) else [value]
    return bool(numbers) and all(type(number) is int and 0 <= number < _MOST for number in numbers)


_SOME = Kind('numbers from 0, such as 4, [4, 5] or "4-7"', _accepted)
_BITS = Kind("16, 8 or 4", lambda value: type(value) is int and value in (16, 8, 4))
_DECAY = Kind("a number from 0 to 1", lambda value: NUMBER.accepts(value) and 0 <= value <= 1)
_TOKENS = whole(0, MOST_TOKENS)
_NUMBERS = dict.fromkeys(("window", "heavy", "anchor"), _TOKENS) | {"decay": _DECAY, "bits": _BITS}
_NUMBERS |= dict.fromkeys(("per_visit", "prompt"), FLAG) | {"score": TEXT}
_EDIT = {"layers": _SOME, "heads": optional(_SOME), "from": optional(TEXT)} | {
    name: optional(kind) for name, kind in _NUMBERS.items()
}


def read_edits(path: str | Path) -> list[Edit]:
    """Read the edits of a file, and the policies that they take heads of.

    Args:
        path: of the TOML file.

    Raises:
        DataError: no such file, not TOML, without edits, or a key that is unknown, missing or wrong; or no such policy.
        PolicyMismatch: a policy that can't be used, see `Policy.load`.
    """
    path = Path(path)
    try:
        content = tomllib.loads(read_text(path, "file of edits"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a TOML file ({said(error)}).") from None
    tables = content.get("edit")
    if set(content) != {"edit"} or not isinstance(tables, list) or not tables:
        found = ", ".join(plain(name) for name in content) or "nothing"
        raise DataError(f"{path}: holds {clipped(found)}, expected tables [[edit]] and nothing else.")
    return [_edit(table, path, f"{path}: edit {number}") for number, table in enumerate(tables, 1)]


def _edit(table: Any, path: Path, where: str) -> Edit:
    facts = check(table, _EDIT, where)
    if unknown := [name for name in facts if name not in _EDIT]:
        raise DataError(f"{where}: {plain(unknown[0])} is unknown, expected some of {', '.join(_EDIT)}.")
    numbers = {name: facts[name] for name in _NUMBERS if name in facts}
    if bool(numbers) == ("from" in facts):
        raise DataError(f"{where}: expected either `from` or some of {', '.join(_NUMBERS)}.")
    heads = None if "heads" not in facts else _listed(facts["heads"], f"{where}: heads")
    layers = _listed(facts["layers"], f"{where}: layers")
    if "from" not in facts:
        return Edit(where, layers, heads, numbers)
    file = path.parent / facts["from"]
    ships = facts["from"] in shipped() and not is_there(file)
    return Edit(where, layers, heads, source=Policy.load(facts["from"] if ships else file), name=file.name)


def _listed(value: str | int | list[int], where: str) -> tuple[int, ...]:
    """`"4-7"`, `"0,3"`, 4 or [4, 5] as numbers in order, each once."""
    if not isinstance(value, str):
        return tuple(sorted({value} if isinstance(value, int) else {*value}))
    found: set[int] = set()
    for part in value.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high < low:
            raise DataError(f'{where}: {part.strip()} ends before it begins, expected such as "{high}-{low}".')
        found.update(range(low, high + 1))
    return tuple(sorted(found))
