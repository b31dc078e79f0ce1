"""What memory a run takes, by part, and the largest batch that fits: counted from shapes, the image decoder's watched once."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from headscope.errors import BudgetError
from headscope.models import ImageModel, random_codes
from headscope.pipeline.budgets import free_memory
from headscope.pipeline.opened import Asked
from headscope.policy import CacheSpec
from headscope.tuning import ROOM, batch_bytes, replayed_bytes
from headscope.words import size

# What Python with torch, transformers and pandas takes before any model is loaded.
LIBRARIES = 700 * 2**20
# Memory of decoding an image, with what convolutions take for themselves, over that of its tensors: VQ-16 at 256 pixels on a
# CPU holds 96 MiB of tensors and 226 MiB in all.
CONVOLUTIONS = 2.4


@dataclass(frozen=True)
class Needs:
    """Bytes that a run takes on the device of its model.

    Attributes:
        name: of the model.
        batch: images generated together.
        libraries: Python's packages; 0 where the model is not on the CPU.
        weights: of everything that is loaded.
        rounded: of the copy in bfloat16 that tells what rounding costs; 0 where the weights have two bytes.
        image: the full cache of one image, with the work of a step.
        tables: of the replay: what the full cache predicted.
        replay: that a batch of replayed images works with.
        pixels: that decoding one image works with; 0 before it was watched.
        pixel_seconds: that this took.
    """

    name: str
    batch: int
    libraries: int
    weights: int
    rounded: int
    image: int
    tables: int
    replay: int
    pixels: int = 0
    pixel_seconds: float = 0.0

    @property
    def cache(self) -> int:
        """Of a batch, with the work of a step."""
        return self.batch * self.image

    @property
    def beside(self) -> int:
        """What comes on top of libraries and weights: batches, replays and decoded images take turns."""
        return self.rounded + self.tables + max(self._turns().values())

    @property
    def nbytes(self) -> int:
        """Of the whole run."""
        return self.libraries + self.weights + self.beside

    def largest_batch(self, free: int) -> int:
        """Images generated together that `free` bytes beside the weights have room for."""
        return max(free - self.rounded - self.tables, 0) // self.image

    def sentence(self) -> str:
        """Each part in words."""
        stay = {"weights": self.weights, "their copy in bfloat16": self.rounded, "tables of the replay": self.tables}
        return f"memory: {_listed(stay)}; in turns {_listed(self._turns())}."

    def _turns(self) -> dict[str, int]:
        """What does not need memory at the same time."""
        images = "1 image" if self.batch == 1 else f"{self.batch} images"
        return {f"full cache of {images}": self.cache, "image decoder": self.pixels, "work of the replay": self.replay}

    def _most(self) -> str:
        """What comes on top of the weights, by the largest of what takes turns."""
        name, nbytes = max(self._turns().items(), key=lambda turn: turn[1])
        return _listed({name: nbytes, "tables of the replay": self.tables, "copy in bfloat16": self.rounded})

    def check(self, free: int) -> Needs:
        """Itself, where `free` bytes beside the weights have room for the rest.

        Raises:
            BudgetError: they have not; names the largest batch that fits, where a smaller one does.
        """
        if self.beside <= free:
            return self
        most = self.largest_batch(free)
        if 1 <= most < self.batch and replace(self, batch=most).beside <= free:
            raise BudgetError(
                f"{self.name}: takes {size(self.beside)} beside its weights ({self._most()}), {size(free)} are free: at most "
                f"{most} of {self.batch} images fit together, set `batch_size` to {most}."
            )
        one = replace(self, batch=1)
        raise BudgetError(
            f"{self.name}: takes {size(one.beside)} beside its weights with one image at a time ({one._most()}), {size(free)} "
            "are free: no batch fits, so ask for fewer prompts, or use another device."
        )


def fitting_needs(asked: Asked) -> Needs:
    """What a run takes, after it was found to fit into the memory that is free now.

    Args:
        asked: the model, loaded, and the prompts.

    Raises:
        BudgetError: it does not fit.
    """
    free = free_memory(str(asked.model.device))
    needs = counted(asked).check(free)
    nbytes, seconds = working_bytes(lambda: asked.model.to_images(random_codes(asked.model, 1)))
    return replace(needs, pixels=int(CONVOLUTIONS * nbytes), pixel_seconds=seconds).check(free)


def counted(asked: Asked) -> Needs:
    """What a run takes, as far as shapes tell it."""
    model, config, shape = asked.model, asked.config, asked.model.shape
    calibration, unseen = len(asked.calibration), len(asked.unseen)
    searched = min(config.search.images or calibration, calibration)
    table = 0 if config.search.quick else min(config.search.table_images, calibration)
    weights = weight_bytes(model)
    spec = CacheSpec(shape, asked.prefix, streams=asked.streams, dtype=str(model.dtype))
    replayed = max(searched, table, unseen) * replayed_bytes(model, asked.prefix, asked.streams)
    return Needs(
        name=model.name,
        batch=min(config.batch_size, max(calibration, unseen)),
        libraries=LIBRARIES if model.device.type == "cpu" else 0,
        weights=weights,
        rounded=weights * 2 // model.dtype.itemsize if model.dtype.itemsize > 2 else 0,
        image=spec.full_bytes + step_bytes(model, asked.prefix, asked.streams),
        tables=max(_table(model, searched) + _table(model, table), _table(model, unseen)),
        replay=min(replayed, batch_bytes(model.device)),
    )


def step_bytes(model: ImageModel, prefix: int, streams: int) -> int:
    """What an image needs beside its cache: the prompt's activations, and logits and noise of a step, generously."""
    width = model.shape.query_heads * model.shape.head_dim
    return streams * (16 * prefix * width * model.dtype.itemsize + 3 * 4 * model.vocabulary) + 4 * 4 * model.vocabulary


def weight_bytes(model: ImageModel) -> int:
    """Of every network that an image model holds, what several share once."""
    held = [model.decoder, *(part for part in getattr(model, "__dict__", {}).values() if isinstance(part, nn.Module))]
    tensors = {id(tensor): tensor for part in held for tensor in (*part.parameters(), *part.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def working_bytes(work: Callable[[], object]) -> tuple[int, float]:
    """The most bytes of tensors that were alive together while `work` ran, its result included, and its seconds.

    What torch's own kernels take inside one function is not seen.
    """
    started = time.perf_counter()
    with _Alive() as alive:
        work()
    return alive.most, time.perf_counter() - started


class _Alive(TorchFunctionMode):
    """Counts the memory of results of torch's functions for as long as somebody holds them, views of one memory once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._views: dict[int, int] = {}  # by address

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {memory for each in args if isinstance(each, torch.Tensor) and (memory := _address(each)) not in self._views}
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, torch.Tensor) and _address(tensor) not in given:
                self._take(tensor)
        return found

    def _take(self, tensor: torch.Tensor) -> None:
        place, nbytes = _address(tensor), tensor.untyped_storage().nbytes()
        if place not in self._views:
            self.now += nbytes
            self.most = max(self.most, self.now)
        self._views[place] = self._views.get(place, 0) + 1
        weakref.finalize(tensor, self._leave, place, nbytes)

    def _leave(self, place: int, nbytes: int) -> None:
        self._views[place] -= 1
        if not self._views[place]:
            del self._views[place]
            self.now -= nbytes


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(nbytes)}" for name, nbytes in parts.items() if nbytes)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _table(model: ImageModel, images: int) -> int:
    """Of the full cache's predictions on some images, whole or as compact as it takes."""
    return min(4 * images * model.shape.geometry.tokens * model.vocabulary, ROOM)
