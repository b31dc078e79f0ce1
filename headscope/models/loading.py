"""Whole checkpoints only: what a folder lacks, transformers fills with fresh random numbers and a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headscope.errors import ModelError

# Tensors of old checkpoints that follow from the configuration: rotary angles, GPT-2's triangle.
_DERIVED = ("inv_freq", "attn.bias", "attn.masked_bias")


def check_whole(source: str | Path, found: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Refuse a checkpoint whose tensors are not those of the network that was made.

    Args:
        source: folder or hub id, for the sentence.
        found: the loading info of `from_pretrained(..., output_loading_info=True)`: `missing_keys`, `unexpected_keys`.
        parts: beginnings of the names of tensors that are used; what is missing or foreign elsewhere does not matter.

    Raises:
        ModelError: names the first three that are missing, or that the network has no place for.
    """
    used = tuple(parts)
    missing = sorted(name for name in found["missing_keys"] if name.startswith(used))
    foreign = sorted(name for name in found["unexpected_keys"] if name.startswith(used) and not name.endswith(_DERIVED))
    if missing:
        beside = sorted(found["unexpected_keys"])
        other = f", and has others, such as {beside[0]}: it is of another class" if beside else ": copy the whole checkpoint"
        raise ModelError(f"{source}: lacks {_some(missing)}{other}.")
    if foreign:
        raise ModelError(
            f"{source}: has {_some(foreign)}, for which the model has no place (an adapter, or another class): merge or remove "
            "them first."
        )


def _some(names: Sequence[str]) -> str:
    """The first three, and how many there are."""
    more = f" ({len(names)} tensors in all)" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
