"""vLLM: `kv_cache_dtype` and `kv_cache_dtype_skip_layers`, for `LLM(**json)` and, in a file that ends in .yaml, `vllm serve
--config`.

Layers that are listed keep the model's dtype, the others hold fp8. Which tokens are kept it can't be told.
"""

from __future__ import annotations

from pathlib import Path

import torch

from headscope.errors import PolicyMismatch
from headscope.policy.exchange.reckoning import (
    bytes_for,
    heads,
    length_of,
    lost_heavy,
    lost_lead,
    lost_prompt,
    lost_rest,
    one_image,
    span,
)
from headscope.policy.exchange.record import Content
from headscope.policy.footprint import CACHE_DTYPES
from headscope.policy.policy import Policy

BLOCK = 16  # tokens of a page
QUANTIZED = "fp8"


def write(policy: Policy, path: Path) -> Content:
    """The bits of a policy as settings of vLLM.

    Args:
        policy: to write.
        path: of the file, for messages.

    Raises:
        PolicyMismatch: each layer has a head of 16 bits, so nothing would be quantised.
    """
    skipped = (policy.bits == 16).any(1)
    if bool(skipped.all()):
        raise PolicyMismatch(
            f"{path}: every layer has a KV head of 16 bits, and vLLM quantises whole layers, so nothing of this policy would "
            "be left; expected a layer whose heads all have 8 or 4 bits."
        )
    layers = [str(layer) for layer in skipped.nonzero()[:, 0].tolist()]
    settings = {"kv_cache_dtype": QUANTIZED, "kv_cache_dtype_skip_layers": layers}
    pages = -(-length_of(policy) // BLOCK) * BLOCK
    number = torch.where(skipped, CACHE_DTYPES[one_image(policy).dtype], 1)[:, None]
    return Content({"": settings}, bytes_for(policy, torch.full_like(policy.window, pages), number), _lost(policy, skipped))


def _lost(policy: Policy, skipped: torch.Tensor) -> tuple[str, ...]:
    lost = []
    drops = policy.window + policy.heavy < policy.shape.geometry.tokens - 1
    if bool(drops.any()):
        lost.append(f"window, anchor: {heads(int(drops.sum()))} keep {span(policy.window[drops])} tokens before the query; "
                    "there every token is kept")  # fmt: skip
    lost += lost_heavy(policy, "there every token is kept")
    mixed = policy.bits[skipped] != 16
    if bool(mixed.any()):
        lost.append(f"bits: {heads(int(mixed.sum()))} of fewer bits lie in layers with a head of 16 and keep 16")
    if bool((policy.bits[~skipped] == 4).any()):
        lost.append(f"bits: {heads(int((policy.bits[~skipped] == 4).sum()))} of 4 bits keep 8, in {QUANTIZED}")
    lost.append(f"prefix and anchors: kept in the model's dtype here, in {QUANTIZED} there")
    return (*lost, *lost_prompt(policy), *lost_lead(policy), *lost_rest())
