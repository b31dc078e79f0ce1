"""KVTuner: every token is kept, and each layer's bits come from the sensitivity table."""

from __future__ import annotations

import numpy as np
import torch

from headscope.errors import BudgetError
from headscope.policy import Limit, Policy
from headscope.tuning.measure.options import Losses
from headscope.tuning.propose.knapsack import allocate, option_bytes

NAME = "kvtuner"


def kvtuner(losses: Losses, limit: Limit) -> Policy:
    """KVTuner (2502.04420) as it stands for raster images: all tokens, in 16, 8 or 4 bits layer by layer, at the limit.

    Its pairs of bits for keys and values apart, and its clusters of layers, are left out: the allocation with the least sum of
    losses is found outright.

    Args:
        losses: of a table with the option of every token in 8 or 4 bits.
        limit: what has to hold it.

    Raises:
        BudgetError: all tokens do not fit in the fewest bits that the table knows.
    """
    shape, most = limit.spec.shape, limit.spec.shape.geometry.tokens - 1
    whole = [number for number, one in enumerate(losses.options) if (one.window, one.heavy, one.prompt) == (most, 0, 1)]
    kept = Losses(tuple(losses.options[number] for number in whole), losses.loss[:, :, whole], losses.stride)
    by_layer = kept.loss.sum(1, keepdims=True)
    found = allocate(by_layer, shape.kv_heads * option_bytes(kept, limit, 1), limit.per_row, 1)
    if found is None:
        raise BudgetError(f"preset {NAME}: every token in the fewest bits takes more than {limit.bytes:,} bytes.")
    bits = np.array([option.bits for option in kept.options])[found.choice]
    return Policy.uniform(
        shape,
        window=most,
        stride=1,
        prefix=limit.spec.prefix,
        bits=torch.from_numpy(bits).to(torch.uint8).expand(-1, shape.kv_heads).contiguous(),
        provenance={"method": NAME, "variant": "bits by layer"},
    )
