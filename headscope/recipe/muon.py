"""Muon for the matrices of a transformer, AdamW for everything else.

`torch.optim.Muon` orthogonalises in bfloat16, which CPUs without bfloat16 units do fifty times slower than float32; this one
runs Newton-Schulz in the dtype of the weights and keeps its state as named tensors, so that a checkpoint is a safetensors
file. Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

import torch
from torch import nn

_A, _B, _C = 3.4445, -4.7750, 2.0315  # quintic coefficients of the source


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly the closest semi-orthogonal matrix, by Newton-Schulz iteration. matrix: [rows, columns], or n of them stacked."""
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


def _is_hidden_matrix(name: str, p: nn.Parameter) -> bool:
    """Linear layers inside the decoder, and convolutions between hidden channels (read as [out, in * kernel])."""
    return (p.ndim == 2 and ".layers." in name) or (p.ndim == 4 and min(p.shape[:2]) >= 8)


class MuonAdam:
    """Both optimisers over one model. `state` maps "name.buffer" to tensors."""

    def __init__(self, model: nn.Module, rate: float, adam_rate: float, weight_decay: float = 0.01) -> None:
        self.rate, self.adam_rate, self.weight_decay = rate, adam_rate, weight_decay
        self.step_count = 0
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.matrices = [(n, p) for n, p in named if _is_hidden_matrix(n, p)]
        self.others = [(n, p) for n, p in named if not _is_hidden_matrix(n, p)]
        self.state: dict[str, torch.Tensor] = {}
        for name, p in self.matrices:
            self.state[f"{name}.momentum"] = torch.zeros_like(p)
        for name, p in self.others:
            self.state[f"{name}.mean"] = torch.zeros_like(p)
            self.state[f"{name}.square"] = torch.zeros_like(p)
        self._groups = self._together()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for _, p in (*self.matrices, *self.others)]

    def _together(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Matrices that are made orthogonal at once: all of one shape on a GPU, which is slow at many small products."""
        groups: dict[object, list[tuple[str, nn.Parameter]]] = {}
        for name, p in self.matrices:
            groups.setdefault(tuple(p.flatten(1).shape) if p.is_cuda else name, []).append((name, p))
        return list(groups.values())

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with both learning rates multiplied by `factor`."""
        self.step_count += 1
        for group in self._groups:
            self._step_matrices([(name, p) for name, p in group if p.grad is not None], factor)
        first, second = 0.9, 0.95
        for name, p in self.others:
            if p.grad is None:
                continue
            mean, square = self.state[f"{name}.mean"], self.state[f"{name}.square"]
            mean.lerp_(p.grad, 1 - first)
            square.lerp_(p.grad.square(), 1 - second)
            scale = (1 - second**self.step_count) ** 0.5 / (1 - first**self.step_count)
            p.addcdiv_(mean, square.sqrt().add_(1e-10), value=-self.adam_rate * factor * scale)

    def _step_matrices(self, group: list[tuple[str, nn.Parameter]], factor: float) -> None:
        """Matrices of one shape, [rows, columns] once flattened."""
        updates = []
        for name, p in group:
            assert p.grad is not None
            momentum = self.state[f"{name}.momentum"]
            momentum.lerp_(p.grad, 0.05)
            updates.append(p.grad.lerp(momentum, 0.95).flatten(1))
        if len(updates) > 1:
            updates = list(orthogonalise(torch.stack(updates)).unbind())
        else:
            updates = [orthogonalise(update) for update in updates]
        for (_, p), update in zip(group, updates, strict=True):
            p.mul_(1 - self.rate * factor * self.weight_decay)
            stretch = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            p.add_(update.reshape(p.shape), alpha=-self.rate * factor * stretch)
