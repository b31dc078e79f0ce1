"""Rule: what single heads of a model lost by what they look at, kept in a policy file so that the policy can be transferred.

The policy file has it as tensors `rule.features`, `rule.missed`, `rule.log_loss` (float16) and `rule.options` (float32), and as
the metadata `rule`. It changes nothing that is kept: a reader that does not know these names leaves them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from headscope.errors import PolicyMismatch
from headscope.facts import TEXTS, check, clipped, shown, whole
from headscope.geometry import MOST_TOKENS
from headscope.policy.shape import ModelShape
from headscope.policy.tensors import BITS

KEY, VERSION = "rule", 1
FACTS = {"version": whole(1), "features": TEXTS, "stride": whole(1, MOST_TOKENS)}
# A file may not name more than these; a search has 10 features and 42 options.
MOST_FEATURES, MOST_OPTIONS = 64, 1024
OPTIONS = "rule.options"
TENSORS = ("rule.features", OPTIONS, "rule.missed", "rule.log_loss")
# What a loss is taken for where it is less, nats a token: far below what a table can tell from nothing.
LEAST = 1e-7


@dataclass(frozen=True, eq=False)
class Rule:
    """How the loss of a head hangs on what it looks at, measured on one model: the rows that `headscope.transfer` learns from.

    Attributes:
        names: of the F features.
        features: float32 [layers, kv_heads, F], what a head looks at.
        options: float32 [options, 4]: window, heavy, decay and bits of each option, as in `Policy`.
        missed: float32 [layers, kv_heads, options] in [0, 1], share of a head's attention that an option leaves out.
        loss: float32 [layers, kv_heads, options], nats a token when this head alone has this option, above 0.
        stride: tokens between two choices of the heavy set, at which the losses were measured.

    Raises:
        PolicyMismatch: on construction: a tensor of another size, or a number that none can be.
    """

    names: tuple[str, ...]
    features: torch.Tensor
    options: torch.Tensor
    missed: torch.Tensor
    loss: torch.Tensor
    stride: int

    def __post_init__(self) -> None:
        heads, number = tuple(self.features.shape[:-1]), len(self.options)
        sizes = {"features": (*heads, len(self.names)), "options": (number, 4), "missed": (*heads, number)}
        for name, size in {**sizes, "loss": (*heads, number)}.items():
            found = tuple(getattr(self, name).shape)
            if found != size or len(heads) != 2 or 0 in size:
                raise PolicyMismatch(f"rule: {name} has shape {clipped(str(found))}, expected {size}.")
            if not bool(getattr(self, name).isfinite().all()):
                raise PolicyMismatch(f"rule: {name} holds a number that is not finite; write the file anew.")
        window, heavy, decay, bits = self.options.unbind(-1)
        counts = ((window >= 0) & (heavy >= 0) & (window == window.round()) & (heavy == heavy.round())).all()
        known = (bits[:, None] == torch.tensor(BITS)).any(-1).all()
        if not bool(counts & known & ((decay >= 0) & (decay <= 1)).all()):
            raise PolicyMismatch("rule: an option is no window, heavy, decay and bits that a head can have.")
        if not bool(((self.missed >= 0) & (self.missed <= 1)).all()) or not bool((self.loss > 0).all()):
            raise PolicyMismatch("rule: a missed share is outside 0 .. 1, or a loss is not above 0.")

    def check_heads(self, shape: ModelShape) -> None:
        """Refuse a rule of another model than the policy's.

        Args:
            shape: of the policy.

        Raises:
            PolicyMismatch: other layers or KV heads.
        """
        found, expected = tuple(self.features.shape[:2]), (shape.layers, shape.kv_heads)
        if found != expected:
            raise PolicyMismatch(f"rule: is of {found} layers and KV heads, expected {expected} for {shape.name}.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """As the policy file has them, by name."""
        made = {
            "rule.features": self.features.half(),
            OPTIONS: self.options.float(),
            "rule.missed": self.missed.half(),
            "rule.log_loss": self.loss.clamp(min=LEAST).log().half(),
        }
        return {name: tensor.contiguous() for name, tensor in made.items()}

    def facts(self) -> dict[str, Any]:
        """The metadata, JSON values."""
        return {"version": VERSION, "features": list(self.names), "stride": self.stride}


def read_rule(file: safe_open, facts: Mapping[str, Any] | None, shape: ModelShape) -> Rule | None:
    """The rule of a policy file; None where it has none, or one of a later version.

    Args:
        file: open.
        facts: the metadata `rule`, None where there is none.
        shape: of the policy.

    Raises:
        PolicyMismatch: a part is missing, or of another type or size.
    """
    if facts is None or (names := names_of(facts)) is None:
        return None
    known = set(file.keys())
    count = file.get_slice(OPTIONS).get_shape()[0] if OPTIONS in known else 0
    heads = [shape.layers, shape.kv_heads]
    sizes = {"rule.features": ("F16", [*heads, len(names)]), OPTIONS: ("F32", [count, 4])}
    sizes |= {name: ("F16", [*heads, count]) for name in ("rule.missed", "rule.log_loss")}
    return made_of(facts, {name: _tensor(file, name, *size) for name, size in sizes.items() if _is_there(name, known)})


def names_of(facts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of a rule's features; None where it is of a later version.

    Args:
        facts: the metadata `rule`.

    Raises:
        PolicyMismatch: a fact that is missing or impossible.
    """
    check(facts, {"version": FACTS["version"]}, KEY, PolicyMismatch)
    if facts["version"] > VERSION:
        return None
    check(facts, FACTS, KEY, PolicyMismatch)
    names = tuple(facts["features"])
    if not 0 < len(names) <= MOST_FEATURES or len(set(names)) < len(names):
        raise PolicyMismatch(f"rule.features is {shown(list(names))}, expected 1 to {MOST_FEATURES} names, each once.")
    return names


def made_of(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Rule:
    """A rule from its facts, of which `names_of` has told the names, and its tensors as `Rule.tensors` gives them.

    Args:
        facts: the metadata `rule`.
        tensors: by name, float32.
    """
    features, options, missed, log_loss = (tensors[name] for name in TENSORS)
    return Rule(tuple(facts["features"]), features, options, missed, log_loss.exp(), facts["stride"])


def _is_there(name: str, known: set[str]) -> bool:
    if name not in known:
        raise PolicyMismatch(f"lacks the tensor {name}, which its rule needs; write the file anew.")
    return True


def _tensor(file: safe_open, name: str, dtype: str, size: list[int]) -> torch.Tensor:
    """Float32, read after the header says that it is as large as it has to be."""
    header = file.get_slice(name)
    found, shape = header.get_dtype(), header.get_shape()
    if (found, shape) != (dtype, size) or not 0 < size[0] <= max(MOST_OPTIONS, size[0] * (len(size) == 3)):
        raise PolicyMismatch(f"tensor {name}: is {found} {clipped(str(shape))}, expected {dtype} {size}.")
    return file.get_tensor(name).float()
