"""What tokens usually receive: attention by place of the grid, in the full cache of calibration images; and tables from it.

The score `expected` (headscope.policy.SCORES) compares (received + FLOOR) * weight * length of the value, with the weight

    still to come here, of all queries from now on / (usual score by now + FLOOR).

Both are means over images, streams and the query heads of a group. The usual score fades as the head's own does. What a head
is told is not that table of every stride end, but its logarithm as a mean over the stride ends of a row, and of that the best
approximation of rank RANK among tokens that compete, in 8 bits (`ScoreTable`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.facts import check, parsed, whole
from headscope.geometry import MOST_TOKENS
from headscope.policy import FLOOR, ModelShape, Policy, ScoreTable
from headscope.reading import open_tensors
from headscope.storage import write_whole

# Of the tables: at rank 2, a row at a time, within 3 % as little is lost as with full ones (reports/stickers/scores.csv).
RANK = 2
# Attention still to come that is taken for less than this, in queries' worth, is taken for this.
LEAST = 1e-3
_ROUNDS, _RIDGE = 30, 1e-2  # of the approximation
_NAME, _KEY = "received", "headscope_usual"
_FACTS = {"stride": whole(1, MOST_TOKENS)}
_AGAIN = "delete it to measure again"


@dataclass(frozen=True, eq=False)
class UsualAttention:
    """Mean attention by place, of one model.

    Attributes:
        received: float32 [layers, kv_heads, ends, tokens], what a token receives from the queries of each stride.
        stride: tokens between two ends.
        rows: of the grid.
    """

    received: torch.Tensor
    stride: int
    rows: int

    def complete(self, policy: Policy) -> Policy:
        """The policy with tables for every head that needs one, and no others.

        Args:
            policy: of this model; its tables, if it has some, are replaced.
        """
        needed = policy.needs_table
        if not bool(needed.any()):
            return policy if policy.tables is None else policy.replace(tables=None)
        weights, known = self.log_weights(policy)
        heads = needed.flatten().nonzero().flatten().to(torch.int32)
        return policy.replace(tables=ScoreTable.written(heads, *approximated(weights, known, RANK)))

    def log_weights(self, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
        """What tables are made of, of the n heads that need one.

        Args:
            policy: of this model, whose decays and windows count.

        Returns:
            log2 of weights float64 [n, rows, tokens], means over the ends of a row; and bool, where a token competes at any.
        """
        needed, grid = policy.needs_table, policy.shape.geometry
        received = self.received[needed].double()
        decay = policy.decay[needed].double() ** (self.stride / policy.stride)
        coming, usual = received.sum(1), torch.zeros_like(received[:, 0])
        size = (len(received), grid.rows, grid.tokens)
        total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for end in range(received.shape[1]):
            t = (end + 1) * self.stride - 1
            usual = usual * decay[:, None] + received[:, end]
            coming = (coming - received[:, end]).clamp(min=0)
            competes = torch.arange(grid.tokens) <= t - policy.window[needed][:, None]
            weight = torch.log2(coming.clamp(min=LEAST)) - torch.log2(usual + FLOOR)
            row = t // grid.row_length
            total[:, row] += torch.where(competes, weight, 0.0)
            count[:, row] += competes
        return total / count.clamp(min=1), count > 0

    def table_bytes(self, heads: int) -> int:
        """Bytes of the tables of so many heads.

        Args:
            heads: of any layer.
        """
        rows, tokens = self.rows, self.received.shape[3]
        return heads * (4 + RANK * (2 + rows + tokens))

    def save(self, path: Path, identity: Mapping[str, object]) -> None:
        """Write it, whole or not at all.

        Args:
            path: of a safetensors file.
            identity: what it belongs to.
        """
        facts = {_KEY: json.dumps({"stride": self.stride, **identity})}
        write_whole(path, lambda target: save_file({_NAME: self.received.clamp(min=0).half()}, target, metadata=facts))

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, object], shape: ModelShape) -> UsualAttention | None:
        """Read it; None where the file is of other images or another model.

        Args:
            path: of the file.
            identity: what it has to belong to.
            shape: of the model.

        Raises:
            DataError: not readable, or not what `save` wrote.
        """
        with open_tensors(path, "file of what tokens usually receive", "what tokens usually receive") as file:
            strings = file.metadata() or {}
            facts = check(parsed(strings.get(_KEY, "{}"), f"{path}: {_KEY}"), _FACTS, f"{path}: {_KEY}", advice=_AGAIN)
            if {name: facts.get(name) for name in identity} != dict(identity):
                return None
            size = (shape.layers, shape.kv_heads, shape.geometry.tokens // facts["stride"], shape.geometry.tokens)
            header = file.get_slice(_NAME) if _NAME in file.keys() else None  # noqa: SIM118 - it is no dictionary
            if header is None or (header.get_dtype(), tuple(header.get_shape())) != ("F16", size):
                raise DataError(f"{path}: lacks {_NAME} of F16 {size} for {shape.name}; {_AGAIN}.")
            received = file.get_tensor(_NAME).float()
        if not bool((received.isfinite() & (received >= 0)).all()):
            raise DataError(f"{path}: {_NAME} holds a number that is no attention; {_AGAIN}.")
        return cls(received, facts["stride"], shape.geometry.rows)


def approximated(numbers: torch.Tensor, known: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices whose product is near some numbers, but for a constant a row, which changes no comparison within it.

    Alternating least squares over the known numbers, begun at the singular vectors of the known ones with row means taken off.

    Args:
        numbers: float64 [n, R, N].
        known: bool [n, R, N]; the others do not count.
        rank: of the product.

    Returns:
        [n, rank, R] and [n, rank, N].
    """
    weight = known.double()
    mean = (numbers * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
    left, sizes, right = torch.linalg.svd(torch.where(known, numbers - mean, 0.0), full_matrices=False)
    few = min(rank, sizes.shape[1])
    places = numbers.new_zeros(len(numbers), rank, numbers.shape[2])
    places[:, :few] = right[:, :few] * sizes[:, :few, None].sqrt()
    ones = torch.ones_like(places[:, :1])
    ridge = _RIDGE * torch.eye(rank + 1, dtype=numbers.dtype)
    rows = left.new_zeros(len(numbers), numbers.shape[1], rank + 1)
    for _ in range(_ROUNDS):
        with_constant = torch.cat([places, ones], 1)
        products = torch.einsum("nep,nrp,nsp->ners", weight, with_constant, with_constant) + ridge
        rows = torch.linalg.solve(products, torch.einsum("nep,nrp->ner", weight * numbers, with_constant)[..., None])[..., 0]
        rest, factor = numbers - rows[..., -1:], rows[..., :-1]
        products = torch.einsum("nep,ner,nes->nprs", weight, factor, factor) + ridge[:rank, :rank]
        wanted = torch.einsum("nep,ner->npr", weight * rest, factor)
        places = torch.linalg.solve(products, wanted[..., None])[..., 0].transpose(1, 2)
    return rows[..., :-1].transpose(1, 2), places
