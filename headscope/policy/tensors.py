"""The tensors of a policy: their names, their types, and what a wrong one is told."""

from __future__ import annotations

import torch

from headscope.errors import PolicyMismatch
from headscope.facts import clipped, shown
from headscope.policy.scores import SCORES
from headscope.policy.shape import ModelShape

HEAD_TENSORS = ("window", "heavy", "anchor", "decay", "per_visit", "bits", "prompt", "score", "semantic_score")
KEPT = HEAD_TENSORS[:-1]  # what changes what is kept
BITS = (16, 8, 4)
# Tensors that later versions added, and what every head has unless they say otherwise: features that a file needs by name.
FEATURES = {"bits": 16, "prompt": 1, "score": 0}
# Of these, one that a file has only where it needs it.
SCORE = "score"
LEAD = "lead"  # a feature that is a number of the whole policy
DTYPES = {
    "window": torch.int32,
    "heavy": torch.int32,
    "anchor": torch.int32,
    "decay": torch.float32,
    "per_visit": torch.uint8,
    "bits": torch.uint8,
    "prompt": torch.uint8,
    "score": torch.uint8,
    "semantic_score": torch.float32,
}


def check_tensor(name: str, found: tuple[int, ...], dtype: torch.dtype | str, shape: ModelShape) -> None:
    """Raises PolicyMismatch unless a tensor of a policy is [layers, kv_heads] and of its dtype.

    Args:
        name: one of HEAD_TENSORS.
        found: its shape.
        dtype: a text for one that no policy has.
        shape: the model.
    """
    expected = (shape.layers, shape.kv_heads)
    if found != expected:
        raise PolicyMismatch(
            f"tensor {name}: has shape {clipped(str(found))}, expected {expected} (layers, KV heads) for {shape.name}."
        )
    if dtype != DTYPES[name]:
        raise PolicyMismatch(f"tensor {name}: has dtype {dtype}, expected {DTYPES[name]}.")


def check_range(name: str, tensor: torch.Tensor, low: float, high: float, above: str) -> None:
    """Raises PolicyMismatch unless all values lie in a range; NaN lies in none.

    Args:
        name: one of HEAD_TENSORS.
        tensor: [layers, kv_heads].
        low: smallest value that is allowed.
        high: largest one.
        above: what the sentence says of a larger one.
    """
    wrong = ~((tensor >= low) & (tensor <= high))
    if not bool(wrong.any()):
        return
    layer, head = (int(i) for i in wrong.nonzero()[0])
    value = tensor[layer, head].item()
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    reason = above if value > high else f"is not a number from {low:g} to {high:g}"
    raise PolicyMismatch(f"layer {layer} head {head}: {name} {shown} {reason}.")


def check_bits(bits: torch.Tensor) -> None:
    """Raises PolicyMismatch unless all values [layers, kv_heads] are some of BITS."""
    wrong = (bits[..., None] != torch.tensor(BITS)).all(-1).nonzero()
    if len(wrong):
        layer, head = wrong[0].tolist()
        known = f"{', '.join(map(str, BITS[:-1]))} or {BITS[-1]}"
        raise PolicyMismatch(f"layer {layer} head {head}: bits {bits[layer, head]}, expected {known}.")


def check_scores(score: torch.Tensor, scores: tuple[str, ...]) -> None:
    """Raises PolicyMismatch unless all values [layers, kv_heads] are places in a list of kinds that are known here."""
    if unknown := [name for name in scores if name not in SCORES]:
        raise PolicyMismatch(
            f"score {shown(unknown[0])} is not known here, expected one of {', '.join(SCORES)}; add it by "
            "`headscope.register_score` before the policy is read."
        )
    wrong = (score >= len(scores)).nonzero()
    if len(wrong):
        layer, head = wrong[0].tolist()
        raise PolicyMismatch(
            f"layer {layer} head {head}: score {score[layer, head]}, expected a place in {shown(list(scores))}."
        )


def is_written(name: str, tensor: torch.Tensor) -> bool:
    """Whether a policy file has a tensor: all but one that says what every head did before there was such a thing."""
    return name != SCORE or bool((tensor != FEATURES[SCORE]).any())
