"""Batches in the order of a stage's steps, composed by training itself or ahead of it by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from headscope.recipe.course import Course
from headscope.recipe.images import as_bytes, from_bytes

PREFETCH = 4  # batches that each worker is ahead
PIXELS = "pixels"  # float32 in -1..1; from a worker they come as bytes

# (step, steps) -> the tensors of the batch by name. Steps are None while a stage does not know how many it will have.
Compose = Callable[[int, int | None], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Composed:
    """A batch on its way to training: as float tensors, or from a worker as arrays, which need no shared memory.

    Attributes:
        tensors: by name.
        seconds: that composing it took.
    """

    tensors: dict[str, torch.Tensor | np.ndarray]
    seconds: float

    def pin_memory(self) -> Composed:
        """The same in pinned memory, which a GPU reads by itself; the data loader calls this."""
        return Composed({name: torch.as_tensor(value).pin_memory() for name, value in self.tensors.items()}, self.seconds)

    def on(self, device: str) -> dict[str, torch.Tensor]:
        """Tensors on a device, images as float32 in -1..1."""
        moved = {name: torch.as_tensor(value).to(device, non_blocking=True) for name, value in self.tensors.items()}
        if moved[PIXELS].dtype == torch.uint8:
            moved[PIXELS] = from_bytes(moved[PIXELS])
        return moved


class _InWorkers(Dataset[Composed]):
    """What worker processes do: a batch is a function of its place, so it is the same from every worker."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose

    def __getitem__(self, place: tuple[int, int | None]) -> Composed:
        began = time.perf_counter()
        tensors = self._compose(*place)
        tensors[PIXELS] = as_bytes(tensors[PIXELS])
        arrays: dict[str, torch.Tensor | np.ndarray] = {name: value.numpy() for name, value in tensors.items()}
        return Composed(arrays, time.perf_counter() - began)


class Feed:
    """The batches of a stage, from where it stands to its end.

    Attributes:
        workers: processes that compose; None: training does, in float32.
        batches: that were handed over.
        composing: seconds that composing them took, of all workers together.
        waited: seconds that training waited for them.
    """

    def __init__(self, compose: Compose, course: Course, device: str, workers: int | None = None) -> None:
        self._compose, self._course, self._device = compose, course, device
        self.workers = workers
        self.batches = 0
        self.composing = self.waited = 0.0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        source = iter(self._here() if self.workers is None else self._loader(self.workers))
        while True:
            began = time.perf_counter()
            composed = next(source, None)
            self.waited += time.perf_counter() - began
            if composed is None:
                return
            self.composing += composed.seconds
            self.batches += 1
            yield composed.on(self._device)

    def _here(self) -> Iterator[Composed]:
        for place in self._course.ahead():
            began = time.perf_counter()
            tensors = dict(self._compose(*place))
            yield Composed({**tensors}, time.perf_counter() - began)

    def _loader(self, workers: int) -> DataLoader[Composed]:
        """Workers are forked, so that all share one copy of the drawings; none of them touches a GPU."""
        forks = "fork" in multiprocessing.get_all_start_methods()
        return DataLoader(
            _InWorkers(self._compose),
            batch_size=None,
            sampler=_Places(self._course),
            num_workers=workers,
            pin_memory=self._device.startswith("cuda"),
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=_alone,
            multiprocessing_context="fork" if workers and forks else None,
        )


def _alone(worker: int) -> None:
    """A worker is one thread of many: its tokenizer starts no others."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class _Places:
    """The order of batches, asked for as workers become free."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        return self._course.ahead()
