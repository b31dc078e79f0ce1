"""TensorRT-LLM: `kv_cache_config` for its LLM API (`KvCacheConfig`), as JSON, which its YAML readers take too.

`max_attention_window` is a list of tokens, one a layer, and `sink_token_length` the tokens at the beginning that stay inside
each window. Windows of one size share a memory pool, so sizes are rounded up to at most four. Bytes are of whole pages, where
pages outside a window are freed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from headscope.policy.exchange.reckoning import (
    bytes_for,
    heads,
    kept_tokens,
    length_of,
    lost_bits,
    lost_heavy,
    lost_lead,
    lost_prompt,
    lost_rest,
    span,
)
from headscope.policy.exchange.record import Content
from headscope.policy.policy import Policy

MOST_SIZES = 4
BLOCK = 32  # tokens of a page, `tokens_per_block` unless set


def write(policy: Policy, path: Path) -> Content:
    """A policy as settings of TensorRT-LLM.

    Args:
        policy: to write.
        path: of the file, for messages.
    """
    length = length_of(policy)
    drops = policy.window + policy.heavy < policy.shape.geometry.tokens - 1
    anchors = int(policy.anchor[drops].max()) if bool(drops.any()) else 0
    sink = policy.prefix + anchors
    # Every head gets the whole prompt and the most anchors of any as sinks, so that its window still fits beside them.
    whole_prompt = policy.replace(prompt=torch.ones_like(policy.prompt))
    reach = (kept_tokens(whole_prompt) + anchors - policy.anchor).clamp(max=length)
    reach = torch.where(drops, reach, length)
    sizes = rounded_up(reach.max(1).values.tolist(), MOST_SIZES)
    settings = {"kv_cache_config": {"max_attention_window": sizes, "sink_token_length": sink}}
    whole = torch.tensor(sizes)[:, None].expand_as(reach)
    lost = [
        f"heads: the {heads(reach.shape[1])} of a layer share one size, {span(whole)} tokens, the query and the sinks included"
    ]
    if bool((policy.anchor[drops] != anchors).any()):
        lost.append(f"anchor: {span(policy.anchor[drops])} image tokens; there every head keeps {anchors}")
    lost += [*lost_heavy(policy, "there as many newest tokens stand for them"), *lost_bits(policy), *lost_prompt(policy)]
    lost += [*lost_lead(policy), *lost_rest()]
    return Content({"": settings}, bytes_for(policy, _allocated(whole, sink, length)), tuple(lost))


def _allocated(sizes: torch.Tensor, sink: int, length: int) -> torch.Tensor:
    """Tokens of whole pages, of which the window's first and last and the sinks' last may be partly empty."""

    def pages(tokens: torch.Tensor) -> torch.Tensor:
        return torch.div(tokens + BLOCK - 1, BLOCK, rounding_mode="floor")

    sinks = pages(torch.tensor(sink))
    window = pages((sizes - sink).clamp(min=0)) + 1
    everything = pages(torch.tensor(length)) + 1
    return torch.minimum(sinks + window, everything) * BLOCK


def rounded_up(sizes: list[int], most: int) -> list[int]:
    """Each size rounded up to one of at most `most`, chosen so that the sum is the smallest.

    Example: 10, 12, 40, 41 with two sizes: 12, 12, 41, 41.

    Args:
        sizes: of the layers.
        most: distinct sizes in the answer.
    """
    distinct, counts = np.unique(sizes, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # best[i]: (sum, sizes) of the i smallest distinct sizes with the classes so far.
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())] + [
        (int(below[i] * distinct[i - 1]), (int(distinct[i - 1]),)) for i in range(1, len(distinct) + 1)
    ]
    for _ in range(most - 1):
        best = best[:1] + [
            min(
                (best[j][0] + int((below[i] - below[j]) * distinct[i - 1]), (*best[j][1], int(distinct[i - 1])))
                for j in range(i)
            )
            for i in range(1, len(best))
        ]
    classes = np.array(best[-1][1])
    return [int(classes[np.searchsorted(classes, size)]) for size in sizes]
