"""Random policies of the toy model, and what their heads see, token by token."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from headscope.policy import CacheSpec, Limit, Policy
from tests.policy.shapes import SHAPE

TOKENS = SHAPE.geometry.tokens
HEADS = (SHAPE.layers, SHAPE.kv_heads)
EDGES = (0, 1, 2, 5, TOKENS - 2, TOKENS - 1)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any policy of the toy model, at the edges of every number, with a limit or without."""

    def numbers(*values: float) -> torch.Tensor:
        flat = draw(st.lists(st.sampled_from(values), min_size=12, max_size=12))
        return torch.tensor(flat).view(HEADS)

    policy = Policy(
        window=numbers(*EDGES).int(),
        heavy=numbers(0, 0, *EDGES, TOKENS).int(),
        anchor=numbers(0, 1, 7, TOKENS).int(),
        decay=numbers(0.0, 0.1, 1 / 3, 1.0).float(),
        per_visit=numbers(0, 1).to(torch.uint8),
        semantic_score=numbers(0.0, 0.7, 1e-30, 1.0).float(),
        bits=numbers(16, 8, 4).to(torch.uint8) if draw(st.booleans()) else None,
        prompt=numbers(0, 1, 1).to(torch.uint8) if draw(st.booleans()) else None,
        stride=draw(st.sampled_from(SHAPE.geometry.strides())),
        prefix=draw(st.sampled_from((0, 1, 5))),
        shape=SHAPE,
        provenance={"method": "random", "note": ["\u00e9", {"a": None}]},
        results={"kl": 0.1},
    )
    dtype = draw(st.sampled_from(("float32", "bfloat16")))
    limit = Limit(50_000, CacheSpec(SHAPE, policy.prefix, batch=3, dtype=dtype), draw(st.sampled_from((None, 0.2))))
    return policy.replace(limit=draw(st.sampled_from((None, limit))))


def seen(policy: Policy, layer: int, head: int, t: int) -> set[int]:
    """Places in the sequence, from the prompt's first token, that image token t may see in a head: all that it ever could see
    where the head chooses heavy tokens, and exactly what it sees where it doesn't."""
    image = range(t + 1)
    if policy.heavy[layer, head] == 0:
        window, anchor = int(policy.window[layer, head]), int(policy.anchor[layer, head])
        image = [s for s in image if s < anchor or t - s <= window]
    prompt = range(policy.prefix) if policy.prompt[layer, head] else {0, policy.prefix - 1} & {*range(policy.prefix)}
    return {*prompt, *(policy.prefix + s for s in image)}
