"""By which kinds of scores the heavy heads of a layer choose, as the GPU's kernels read it (kernels/worth.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headscope.policy import BUILT_IN, RECEIVED, SCORES, Policy, ScoreTable


@dataclass(frozen=True)
class FlatScores:
    """Kinds and tables of the heavy heads of a layer, on the device.

    Tables stay as the policy has them, in 8 bits and of few terms: a choice multiplies the terms of the tokens that compete,
    which is nothing beside reading their values. So they take the policy's `table_bytes`, once for all rows, and no more.

    Attributes:
        kinds: int32 [heavy heads], places in `BUILT_IN`.
        of_head: int32 [heavy heads], which of the tables is a head's; 0 where it needs none.
        tables: of the heads that need one, in their order.
        other: whether any kind is another one than attention received.
    """

    kinds: torch.Tensor
    of_head: torch.Tensor
    tables: ScoreTable
    other: bool

    @classmethod
    def of(cls, policy: Policy, layer: int, device: torch.device | str = "cpu") -> FlatScores:
        """Of a layer's heads that have heavy tokens, in their order.

        Args:
            policy: with the tables that its kinds need, all of them kinds that headscope brings.
            layer: its number, from 0.
            device: of the kernels.
        """
        heads = policy.heavy[layer].nonzero().flatten().tolist()
        names = [policy.score_of(layer, head) for head in heads]
        by_table = [layer * policy.shape.kv_heads + h for h, name in zip(heads, names, strict=True) if SCORES[name].by_table]
        places = {head: place for place, head in enumerate(by_table)}
        of_head = [places.get(layer * policy.shape.kv_heads + head, 0) for head in heads]
        found = policy.tables.of(by_table) if by_table and policy.tables is not None else _no_tables(policy)
        return cls(
            kinds=torch.tensor([BUILT_IN.index(name) for name in names], dtype=torch.int32, device=device),
            of_head=torch.tensor(of_head, dtype=torch.int32, device=device),
            tables=ScoreTable(*(part.contiguous() for part in vars(found).values())).to(torch.device(device)),
            other=any(name != RECEIVED for name in names),
        )


def _no_tables(policy: Policy) -> ScoreTable:
    grid = policy.shape.geometry
    rows, places = (torch.zeros(0, 1, length, dtype=torch.int8) for length in (grid.rows, grid.tokens))
    return ScoreTable(torch.zeros(0, dtype=torch.int32), torch.zeros(0, 1, dtype=torch.float16), rows, places)
