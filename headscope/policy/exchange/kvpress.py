"""kvpress (github.com/NVIDIA/kvpress, 0.5): a JSON file with what two of its presses are set to; kvpress itself reads no file.

`DuoAttentionPress` takes `streaming_mask`, `sink_size` and `recent_size`: after the prompt's forward it hides from streaming
heads all keys between the first `sink_size` and the last `recent_size` of them. `PerLayerCompressionPress` takes the fraction
that each layer *removes*, at the length of its prompt. Both act once, when the prompt is read, and hidden keys stay in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headscope.policy.exchange.reckoning import kept_tokens, length_of, plain_bytes
from headscope.policy.exchange.record import Content
from headscope.policy.exchange.two_classes import lost_classes, two_classes
from headscope.policy.policy import Policy


def write(policy: Policy, path: Path) -> Content:
    """A policy as settings of kvpress.

    Args:
        policy: to write.
        path: of the file, for messages.
    """
    classes, length = two_classes(policy), length_of(policy)
    settings = {
        "DuoAttentionPress": {
            "streaming_mask": (~classes.full).tolist(),
            "sink_size": classes.sink,
            "recent_size": classes.recent,
        },
        "PerLayerCompressionPress": _per_layer(policy, length),
    }
    lost = (
        "time: kvpress drops or hides keys once, when the prompt is read; what is decoded afterwards is all kept",
        "memory: keys that are hidden from a head stay in the cache there",
        *lost_classes(policy, classes),
        "sizes within a layer: PerLayerCompressionPress keeps the mean of a layer's heads, rounded up",
    )
    return Content({"": settings}, plain_bytes(policy), lost)


def _per_layer(policy: Policy, length: int) -> dict[str, Any]:
    """Removed fractions; kvpress keeps the whole part of length * (1 - fraction), so each lies half a token low."""
    kept = [-(-int(tokens.sum()) // len(tokens)) for tokens in kept_tokens(policy)]
    removed = [0.0 if tokens >= length else 1 - (tokens + 0.5) / length for tokens in kept]
    return {"compression_ratios": removed, "length": length, "kept_tokens": kept}
