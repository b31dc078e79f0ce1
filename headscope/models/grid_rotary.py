"""Rotary embedding of a grid: half of a head's pairs turn by the row, half by the column, and a prefix does not turn at all."""

from __future__ import annotations

import torch
from torch import nn

BASE = 10000.0


class GridRotary(nn.Module):
    """In the place of the rotary embedding of a `LlamaModel`, for LlamaGen.

    Positions 0 .. P - 1 are the prefix's: cosine and sine are 0, so its queries and keys are 0 whatever they were. Position
    P + t is image token t in row t // side and column t % side. Of the D / 2 pairs of a head, the first half turns by the row,
    the second by the column, both with the frequencies 10000^(-2m / (D / 2)), m = 0, 1, ...

    Args:
        head_dim: numbers of a head, D, a multiple of 4.
        prefix: tokens before the image, P.
        side: rows and columns of the grid.
        device: where the tables are.

    Example: head_dim 8, prefix 1, side 4. Position 6 is image token 5 in row 1 and column 1; its pairs turn by 1 and 0.01
    (row), then by 1 and 0.01 (column).
    """

    attention_scaling = 1.0
    rope_type = "default"

    def __init__(self, head_dim: int, prefix: int, side: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        half = head_dim // 2
        frequencies = BASE ** (-torch.arange(0, half, 2, device=device).float() / half)
        steps = torch.outer(torch.arange(side, device=device).float(), frequencies)  # [side, D / 4]
        angles = torch.cat([steps.repeat_interleave(side, 0), steps.repeat(side, 1)], 1)
        still = angles.new_zeros(prefix, half)
        self.inv_freq: torch.Tensor
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("cos", torch.cat([still, angles.cos()]).repeat(1, 2), persistent=False)  # [P + N, D]
        self.register_buffer("sin", torch.cat([still, angles.sin()]).repeat(1, 2), persistent=False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int64 [B, T] -> cosine and sine [B, T, D] in the dtype of x, for halves of a head that turn each other."""
        return self.cos[position_ids].to(x.dtype), self.sin[position_ids].to(x.dtype)
