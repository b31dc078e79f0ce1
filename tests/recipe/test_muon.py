"""Muon: matrices that are made orthogonal together come out as one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headscope.recipe.muon import MuonAdam, orthogonalise


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_a_stack_is_orthogonalised_as_its_matrices(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = orthogonalise(stack)
    torch.testing.assert_close(together, torch.stack([orthogonalise(one) for one in stack]))
    size = min(shape)
    singular = torch.linalg.svdvals(together)
    assert singular.shape == (3, size)
    assert ((singular > 0.5) & (singular < 1.3)).all()


def test_a_step_of_matrices_together_is_a_step_of_each() -> None:
    stepped = []
    for together in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict(
            {"layers": nn.ModuleList(nn.ModuleList([nn.Linear(8, 12), nn.Conv2d(8, 12, 1)]) for _ in range(2))}
        )
        wrapped = nn.ModuleDict({"decoder": model})
        optimiser = MuonAdam(wrapped, 0.02, 1e-3)
        if together:  # as on a GPU
            optimiser._groups = [optimiser.matrices]
        for parameter in optimiser.parameters:
            parameter.grad = torch.randn(parameter.shape)
        optimiser.step(1.0)
        stepped.append([p.detach().clone() for p in optimiser.parameters])
    assert len(stepped[0]) == 8
    for one, other in zip(*stepped, strict=True):
        torch.testing.assert_close(one, other)
