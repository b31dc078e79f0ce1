"""Whole checkpoints only: what a folder lacks, transformers fills with fresh random numbers and a warning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headscope.errors import ModelError
from headscope.facts import clipped, said, shown

# Tensors of old checkpoints that follow from the configuration: rotary angles, GPT-2's triangle.
_DERIVED = ("inv_freq", "attn.bias", "attn.masked_bias")


@dataclass(frozen=True)
class Placed:
    """Where the tensors of a checkpoint went; a loader that has one refused what was missing or foreign.

    Attributes:
        tensors: that the model took, each into its place.
        aside: that it has no need of, such as those of a tower that looks at images.
    """

    tensors: int
    aside: int

    def __add__(self, other: Placed) -> Placed:
        """Of both files of a model."""
        return Placed(self.tensors + other.tensors, self.aside + other.aside)


def check_whole(source: str | Path, found: Mapping[str, Any], parts: Sequence[str], unused: Sequence[str] = ()) -> int:
    """Refuse a checkpoint whose tensors are not those of the network that was made.

    Args:
        source: folder or hub id, for the sentence.
        found: the loading info of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`:
            `missing_keys`, `unexpected_keys`, and where there are any `mismatched_keys`.
        parts: beginnings of the names of tensors that are used; what is missing elsewhere does not matter.
        unused: of those that are not; what is foreign elsewhere is refused. Without any, only what is foreign under `parts`.

    Returns:
        How many tensors of the checkpoint are left aside.

    Raises:
        ModelError: names the first three that are missing, or that the network has no place for, or one of another shape.
    """
    used = tuple(parts)
    missing = sorted(name for name in found["missing_keys"] if name.startswith(used))
    foreign = sorted(name for name in found["unexpected_keys"] if not name.endswith(_DERIVED))
    foreign = [name for name in foreign if (not name.startswith(tuple(unused)) if unused else name.startswith(used))]
    for name, here, expected in sorted(found.get("mismatched_keys", ())):
        raise other_shape(source, name, here, expected)
    if missing:
        beside = sorted(found["unexpected_keys"])
        other = (
            f", and has others, such as {some(beside[:1])}: it is of another class" if beside else ": copy the whole checkpoint"
        )
        raise ModelError(f"{source}: lacks {some(missing)}{other}.")
    if foreign:
        raise ModelError(
            f"{source}: has {some(foreign)}, for which the model has no place (an adapter, or another class): merge or remove "
            "them first."
        )
    return len(found["unexpected_keys"])


def other_shape(
    source: str | Path, name: str, found: Sequence[int], expected: Sequence[int], settings: str = "config.json"
) -> ModelError:
    """The error of a tensor that has another shape than `settings`, the file with the sizes, gives it."""
    return ModelError(
        f"{source}: {name} has the shape {list(found)}, by the configuration {list(expected)}: weights and {settings} are of "
        "two models, copy both from one."
    )


def other_size(source: str | Path, side: int, trained: int) -> ModelError:
    """The error of a model that is asked for `side` x `side` tokens, and was trained on `trained` of them in all."""
    rows = math.isqrt(trained)
    known = f"{rows} x {rows}" if rows * rows == trained else f"{trained}"
    return ModelError(
        f"{source}: config.json asks for {side} x {side} tokens, but the model was trained on images of {known}, and "
        "other sizes come out as noise: copy the checkpoint's own config.json."
    )


def some(names: Sequence[str], what: str = "tensors") -> str:
    """The first three, and how many there are."""
    more = f" ({len(names)} {what} in all)" if len(names) > 3 else ""
    return ", ".join(clipped(ascii(name)[1:-1], 100) for name in names[:3]) + more


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        ModelError: the file holds none.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({said(error)}): copy the checkpoint's own {file.name}.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file}: holds {shown(found)}, expected an object: copy the checkpoint's own {file.name}.")
    return found
