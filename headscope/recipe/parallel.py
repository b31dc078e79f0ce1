"""Data-parallel training on several CPU processes of one thread each.

Two OpenMP threads of one process collapse when anything else runs on the machine; two processes only slow down.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn


def run(work: Callable[..., None], workers: int, *arguments: Any) -> None:
    """Call `work(rank, *arguments)` once, or in `workers` processes that can average gradients."""
    if workers <= 1:
        work(0, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:  # a file to meet at, so that no port can be taken
        meeting = str(Path(folder) / "meeting")
        spawn(_enter, args=(workers, meeting, work, arguments), nprocs=workers)


def _enter(rank: int, workers: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    try:
        work(rank, *arguments)
    finally:
        distributed.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def average(value: float) -> float:
    """Mean of a number over the processes."""
    if world() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64)
    distributed.all_reduce(tensor)
    return float(tensor) / world()
