"""A fingerprint of weights that does not read all of them."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLED = 64  # values read of each tensor, evenly spread


def weights_fingerprint(module: nn.Module) -> str:
    """sha256 of evenly spread values of every parameter, rounded to bfloat16.

    The same checkpoint loaded in float32 and in bfloat16 has one fingerprint, on any device.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        values = parameter.detach().flatten()
        picks = torch.linspace(0, len(values) - 1, min(SAMPLED, len(values)), dtype=torch.float64).long()
        sampled = values[picks.to(values.device)].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sampled.numpy().tobytes())
    return digest.hexdigest()
