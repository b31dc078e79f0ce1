"""What an image model says of itself in numbers: refused before anything is made with it, not in the middle."""

from __future__ import annotations

from typing import Any

from headscope.errors import ModelError
from headscope.facts import TEXT, Kind, plain, shown

MOST = 100.0  # of guidance and temperature, as `Sampling` has it


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


GUIDANCE = Kind(
    f"a scale from 0 to {MOST:g}, 1 for none", lambda value: _is_number(value) and 0 <= value <= MOST, required=False
)
# At 0 a model gives one code and no distribution, so nothing that is measured means anything; `generate` may ask for it.
TEMPERATURE = Kind(f"a number above 0, at most {MOST:g}", lambda value: _is_number(value) and 0 < value <= MOST, required=False)


def check_ranges(model: Any, name: str) -> None:
    """Refuse a name that can't be printed, and sampling that can't be.

    Args:
        model: an `ImageModel`.
        name: for the message.

    Raises:
        ModelError: names what is wrong.
    """
    codes = model.vocabulary
    top_k = Kind(
        f"None for all codes, or 1 to {codes}, of so many codes",
        lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= codes),
    )
    named = Kind(f"{TEXT.expected}, not an empty one", lambda value: TEXT.accepts(value) and bool(value.strip()))
    for what, kind in {"name": named, "guidance": GUIDANCE, "temperature": TEMPERATURE, "top_k": top_k}.items():
        if not kind.accepts(found := getattr(model, what)):
            raise ModelError(f"{plain(name) or 'the model'}: {what} is {shown(found)}, expected {kind.expected}.")
