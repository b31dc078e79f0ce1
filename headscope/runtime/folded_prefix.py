"""A prefix that every query sees alike, kept as one entry: LlamaGen's keys of captions are 0, for no angle turns them."""

from __future__ import annotations

import torch


def folded(values: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """One entry in place of entries whose keys are all 0.

    Every query gives each of n such entries the logit 0. One entry with the key 0, the mean of their values, and log n added to
    its logit has the same share of the softmax and puts the same into its sum.

    Example: values 1 and 3, and an image token of logit 0.5 and value 5: (1 + 3 + 5 e^0.5) / (1 + 1 + e^0.5) =
    (2 e^(log 2) + 5 e^0.5) / (e^(log 2) + e^0.5).

    Args:
        values: [B, H, P, D], padding included.
        real: bool [B, 1, 1, P], false at the padding; None: there is none.

    Returns:
        Its value [B, H, 1, D] and what is added to its logit, float32 [B, 1, 1, 1].
    """
    if real is None:
        real = torch.ones(len(values), 1, 1, values.shape[2], dtype=torch.bool, device=values.device)
    weights = real.transpose(2, 3).float()  # [B, 1, P, 1]
    count = weights.sum(2, keepdim=True)
    mean = (values.float() * weights).sum(2, keepdim=True) / count
    return mean.to(values.dtype), count.log()
