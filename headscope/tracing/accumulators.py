"""The few things that touch attention. Everything else is a function of what they add up, so no map is ever stored.

Queries are the image tokens that the model was fed, t = 0 .. N - 2. Keys are all tokens: P prefix positions, then those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.geometry import Geometry
from headscope.models.attention import Group

# Elements of one block of attention; 64 MiB in float32.
BLOCK = 16 * 2**20


@dataclass
class Accumulated:
    """Sums over the queries of one layer, for B sequences and h query heads.

    Attributes:
        queries: Q, number of queries.
        prefix: P, prefix positions, padding included; prefix_seen: bool [B, P], those that are no padding.
        columns: float32 [B, h, P + Q], attention each key received, summed over queries.
        squares: float32 [B, h, P + Q], the same of squared attention.
        offsets: float32 [B, h, rows, 2 * row_length - 1], attention to image keys by (rows up, columns right), the
            column offset from -(row_length - 1) to row_length - 1.
        offsets_image: the same with each query's attention to the image scaled to sum to 1.
        entropy: float32 [B, h], sum over queries of H / log(visible keys).
        distance: float32 [B, h], sum over queries of sum_k A |q - k|, positions in the sequence without padding.
    """

    queries: int
    prefix: int
    prefix_seen: torch.Tensor
    columns: torch.Tensor
    squares: torch.Tensor
    offsets: torch.Tensor
    offsets_image: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor


class Accumulator:
    """Adds up one layer's attention in blocks of queries.

    Args:
        geometry: of the image. prefix: positions before the image, padding included.
    """

    def __init__(self, geometry: Geometry, prefix: int) -> None:
        self.geometry, self.prefix = geometry, prefix
        row, column, _ = geometry.coordinates()
        width = 2 * geometry.row_length - 1
        down = row[:, None] - row[None]
        across = column[None] - column[:, None] + geometry.row_length - 1
        self._cells = width * geometry.rows
        # [N, N]; the last bin takes the future.
        self._offset = torch.where(down >= 0, down * width + across, self._cells)

    def add(self, group: Group) -> Accumulated:
        """All queries of a teacher-forced pass: group.q [B, h, P + Q, D] has every token, group.k [B, hk, P + Q, D]."""
        prefix, length = self.prefix, group.q.shape[2]
        queries, batch, heads = length - prefix, group.q.shape[0], group.q.shape[1]
        device = group.q.device
        seen = torch.ones(batch, prefix, dtype=torch.bool, device=device)
        if group.visible is not None:
            seen = group.visible[:, 0, -1, :prefix].expand(batch, prefix)
        keys = group.k.float().repeat_interleave(heads // group.k.shape[1], 1)
        cells = self._offset.to(device)
        zeros = torch.zeros(batch, heads, device=device)
        columns = torch.zeros(batch, heads, length, device=device)
        squares = torch.zeros_like(columns)
        binned = torch.zeros(2, self._cells + 1, batch * heads, device=device)
        entropy, distance = zeros.clone(), zeros.clone()
        block = max(1, BLOCK // (batch * heads * length))
        real = torch.cat([seen, seen.new_ones(batch, queries)], 1)
        place = real.long().cumsum(1) - 1  # position without the padding
        for start in range(0, queries, block):
            stop = min(start + block, queries)
            attention = self._attention(group, keys, real, start, stop)
            columns += attention.sum(2)
            squares += attention.square().sum(2)
            rows = torch.arange(start, stop, device=device)
            visible = seen.sum(1)[:, None] + rows + 1  # [B, block]
            plogp = torch.special.entr(attention).sum(-1)
            entropy += (plogp / visible.clamp(min=2).log()[:, None]).sum(2)
            gap = place[:, prefix + start : prefix + stop, None] - place[:, None, :]
            distance += torch.einsum("bhqk,bqk->bh", attention, gap.clamp(min=0).float())
            image = attention[..., prefix:]
            scaled = image / image.sum(-1, keepdim=True).clamp(min=1e-12)
            index = cells[start:stop, :queries].flatten()
            for number, part in enumerate((image, scaled)):
                binned[number].index_add_(0, index, part.permute(2, 3, 0, 1).reshape(len(index), batch * heads))
        shape = (batch, heads, self.geometry.rows, 2 * self.geometry.row_length - 1)
        offsets, offsets_image = (part[:-1].T.reshape(shape) for part in binned)
        return Accumulated(queries, prefix, seen, columns, squares, offsets, offsets_image, entropy, distance)

    def _attention(self, group: Group, keys: torch.Tensor, real: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """float32 [B, h, stop - start, P + Q] of image queries start .. stop - 1."""
        at = slice(self.prefix + start, self.prefix + stop)
        logits = torch.matmul(group.q[:, :, at].float() * group.scaling, keys.transpose(2, 3))
        positions = torch.arange(keys.shape[2], device=keys.device)
        hidden = (positions > positions[at, None])[None] | ~real[:, None]  # [B, block, P + Q]
        return logits.masked_fill_(hidden[:, None], -torch.inf).softmax(-1)
