"""The same prompts and seeds generated with every cache, batch after batch; what is done stays, whatever happens."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headscope.errors import DataError
from headscope.models import ImageModel
from headscope.policy import CacheSpec, Policy
from headscope.progress import Progress, of_task
from headscope.runtime.decoders.registry import AUTO
from headscope.runtime.generate import by_length, generate
from headscope.runtime.sampling import Sampling
from headscope.samples import Samples
from headscope.storage import read_json, write_json

FULL, OTHER_SEED = "full", "other_seed"
FIRST_SEED = 1_000_000  # far from the seeds that calibration images have
OTHER = 500_000  # the floor of another seed begins there


@dataclass(frozen=True)
class Variant:
    """One way to generate images.

    Attributes:
        name: letters, digits, '.', '-', '_' and '+'; names a folder.
        policy: of its cache; None keeps everything.
        first_seed: where its seeds begin.
        decoder: "auto", or the name of one.
    """

    name: str
    policy: Policy | None = None
    first_seed: int = FIRST_SEED
    decoder: str = AUTO

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise DataError(f"policy name {self.name!r}: expected letters, digits, '.', '-' and '_', for it names a folder.")

    def cache_bytes(self, model: ImageModel, prefix: int, streams: int) -> int:
        """Bytes of the cache of one image."""
        spec = CacheSpec(model.shape, prefix, streams=streams, dtype=str(model.dtype))
        if self.policy is None:
            return spec.full_bytes
        return spec.bytes_of(self.policy)


def batch_for(model: ImageModel, variants: Sequence[Variant], prefix: int, streams: int, memory: int, most: int = 64) -> int:
    """Images generated together: as many as have room for their caches in `memory` bytes, the same for every variant.

    Raises:
        DataError: there is no room for one.
    """
    largest = max(variant.cache_bytes(model, prefix, streams) for variant in variants)
    memory -= max(0 if variant.policy is None else variant.policy.table_bytes for variant in variants)  # all images share them
    if largest > memory:
        raise DataError(
            f"memory: {memory:,} bytes for a worker's batch hold no cache of one image, which takes {largest:,}; give more."
        )
    return min(memory // largest, most)


@dataclass(frozen=True)
class ImageBatches:
    """The images of one variant, batch by batch in a folder; those that stand there are not generated again.

    Number p * seeds + s is prompt p with the seed `first_seed` + that number.

    Attributes:
        model: the image model.
        variant: the policy, where seeds begin, and the decoder.
        prompts: texts.
        seeds: images of each prompt.
        folder: for the batches, a parquet file each.
        sampling: guidance, temperature and top-k; its seed is the variant's affair.
    """

    model: ImageModel
    variant: Variant
    prompts: Sequence[str]
    seeds: int
    folder: Path
    sampling: Sampling | None = None

    @property
    def total(self) -> int:
        """Images in all."""
        return len(self.prompts) * self.seeds

    def all(self, batch_size: int, progress: Progress | None = None) -> Samples:
        """Every image, in the order of the numbers.

        Args:
            batch_size: images generated together.
            progress: told of the images.
        """
        done: dict[int, Samples] = {}
        tell = of_task(progress, f"generating {self.variant.name}", self.total)
        for numbers, samples in self.each(batch_size):
            done |= {number: samples.select([place]) for place, number in enumerate(numbers)}
            tell(len(done), self.total)
        return _joined([done[number] for number in range(self.total)])

    def each(self, batch_size: int) -> Iterator[tuple[list[int], Samples]]:
        """Numbers and samples of a batch each, of those that stood in the folder first."""
        there = dict(sorted(dict(_found_in(self.folder, self.total)).items()))
        if there:
            yield list(there), _joined(list(there.values()))
        todo = [number for number in range(self.total) if number not in there]
        if not todo:
            return
        prefix = self.model.tokenize([self.prompts[number // self.seeds] for number in todo])
        for _, places in by_length(prefix, batch_size):
            numbers = [todo[place] for place in places]
            yield numbers, self.generate(numbers)

    def generate(self, numbers: Sequence[int]) -> Samples:
        """The images of these numbers, and their seconds, into files of their own."""
        began = time.monotonic()
        samples = generate(
            self.model,
            [self.prompts[number // self.seeds] for number in numbers],
            [self.variant.first_seed + number for number in numbers],
            sampling=self.sampling,
            policy=self.variant.policy,
            batch_size=len(numbers),
            decoder=self.variant.decoder,
        )
        samples.save(self.folder / f"{numbers[0]:06d}.parquet")
        write_json(self.folder / f"{numbers[0]:06d}.json", {"seconds": time.monotonic() - began, "images": len(numbers)})
        return samples


def batches_to_generate(folder: Path, total: int, batch_size: int) -> list[list[int]]:
    """Numbers of the images that `folder` lacks, in batches of following ones."""
    there = {number for number, _ in _found_in(folder, total)}
    batches: list[list[int]] = []
    for number in range(total):
        if number in there:
            continue
        if not batches or batches[-1][-1] != number - 1 or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(number)
    return batches


def seconds_of(folder: Path) -> float:
    """Seconds an image of `ImageBatches`, of several processes each its own; NaN where they were not noted."""
    try:
        noted = [read_json(path) for path in folder.glob("[0-9]*.json")]
        return sum(float(one["seconds"]) for one in noted) / sum(int(one["images"]) for one in noted)
    except (DataError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return math.nan


def _found_in(folder: Path, total: int) -> list[tuple[int, Samples]]:
    """(number, sample) of what was generated before; an image's number follows from its seed."""
    found = []
    for path in sorted(path for path in folder.glob("*.parquet") if path.stem.isdigit()):
        try:
            samples = Samples.load(path)
        except DataError as error:
            raise DataError(
                f"{str(error).rstrip('.')}; without that file the same command generates its images anew."
            ) from None
        first = int(path.stem)
        begin = int(samples.seeds[0]) - first
        for place, seed in enumerate(samples.seeds.tolist()):
            if 0 <= seed - begin < total:
                found.append((seed - begin, samples.select([place])))
    return found


def _joined(parts: list[Samples]) -> Samples:
    first = parts[0]
    return Samples(
        prompts=[prompt for part in parts for prompt in part.prompts],
        texts=[text for part in parts for text in part.texts],
        seeds=torch.cat([part.seeds for part in parts]),
        tokens=torch.cat([part.tokens for part in parts]),
        guidance=first.guidance,
        temperature=first.temperature,
        top_k=first.top_k,
        model=first.model,
        weights=first.weights,
        cfg_interval=first.cfg_interval,
    )
