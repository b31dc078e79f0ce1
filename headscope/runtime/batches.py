"""Draw the same prompts and seeds with every cache, batch after batch; what is drawn stays, whatever happens."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headscope.errors import DataError
from headscope.models.protocol import ImageModel
from headscope.policy import Policy, plain_bytes, policy_bytes
from headscope.runtime import generate
from headscope.samples import Samples
from headscope.storage import read_json, write_json

FULL, OTHER_SEED = "full", "other_seed"
FIRST_SEED = 1_000_000  # far from the seeds that calibration pictures have
OTHER = 500_000  # the floor of another seed begins there


@dataclass(frozen=True)
class Variant:
    """One way to draw: its name, the policy of its cache (None: everything is kept), and where its seeds begin."""

    name: str
    policy: Policy | None = None
    first_seed: int = FIRST_SEED

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise DataError(f"policy name {self.name!r}: expected letters, digits, '.', '-' and '_', for it names a folder.")

    def cache_bytes(self, model: ImageModel, prefix: int, streams: int) -> int:
        """Bytes of the cache of one picture."""
        dtype = str(model.dtype).removeprefix("torch.")
        if self.policy is None:
            return plain_bytes(model.shape, prefix=prefix, streams=streams, dtype=dtype)
        return policy_bytes(self.policy, prefix=prefix, streams=streams, dtype=dtype)


def batch_for(model: ImageModel, variants: Sequence[Variant], prefix: int, streams: int, memory: int, most: int = 64) -> int:
    """Pictures drawn together: as many as have room for their caches in `memory` bytes, the same for every variant.

    Raises:
        DataError: there is no room for one.
    """
    largest = max(variant.cache_bytes(model, prefix, streams) for variant in variants)
    if largest > memory:
        raise DataError(
            f"--memory: {memory:,} bytes for a worker's batch hold no cache of one picture, which takes {largest:,}; give more."
        )
    return min(memory // largest, most)


def draw_variant(
    model: ImageModel,
    variant: Variant,
    prompts: Sequence[str],
    seeds: int,
    folder: Path,
    batch_size: int,
    guidance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    temperature: float | None = None,
    drawn: Callable[[Sequence[int], Samples], None] | None = None,
) -> Samples:
    """Pictures of each prompt and seed, prompt by prompt; those that stand in `folder` are not drawn again.

    Args:
        drawn: called with the numbers and samples of every batch, of those that stood there first.

    Returns:
        len(prompts) * seeds samples; number p * seeds + s is prompt p with seed `first_seed` + that number.
    """
    total = len(prompts) * seeds
    done = dict(_drawn(folder, total))
    todo = [number for number in range(total) if number not in done]
    if drawn is not None:
        for number, sample in sorted(done.items()):
            drawn([number], sample)
    for start in range(0, len(todo), batch_size):
        numbers = todo[start : start + batch_size]
        if progress is not None:
            progress(total - len(todo) + start, total)
        samples = draw_numbers(model, variant, prompts, seeds, folder, numbers, guidance, temperature=temperature)
        done |= {number: samples.select([place]) for place, number in enumerate(numbers)}
        if drawn is not None:
            drawn(numbers, samples)
    if progress is not None:
        progress(total, total)
    return _joined([done[number] for number in range(total)])


def draw_numbers(
    model: ImageModel,
    variant: Variant,
    prompts: Sequence[str],
    seeds: int,
    folder: Path,
    numbers: Sequence[int],
    guidance: float | None = None,
    *,
    temperature: float | None = None,
) -> Samples:
    """One batch of `draw_variant`: the pictures of these following numbers, and their seconds, into files of their own."""
    began = time.monotonic()
    samples = generate(
        model,
        [prompts[number // seeds] for number in numbers],
        [variant.first_seed + number for number in numbers],
        policy=variant.policy,
        guidance=guidance,
        temperature=temperature,
        batch_size=len(numbers),
    )
    samples.save(folder / f"{numbers[0]:06d}.parquet")
    write_json(folder / f"{numbers[0]:06d}.json", {"seconds": time.monotonic() - began, "pictures": len(numbers)})
    return samples


def batches_to_draw(folder: Path, total: int, batch_size: int) -> list[list[int]]:
    """Numbers of the pictures that `folder` lacks, in batches of following ones."""
    there = {number for number, _ in _drawn(folder, total)}
    batches: list[list[int]] = []
    for number in range(total):
        if number in there:
            continue
        if not batches or batches[-1][-1] != number - 1 or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(number)
    return batches


def seconds_of(folder: Path) -> float:
    """Seconds a picture of `draw_variant`, of several processes each its own; NaN where they were not noted."""
    try:
        noted = [read_json(path) for path in folder.glob("[0-9]*.json")]
        return sum(float(one["seconds"]) for one in noted) / sum(int(one["pictures"]) for one in noted)
    except (DataError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return math.nan


def _drawn(folder: Path, total: int) -> list[tuple[int, Samples]]:
    """(number, sample) of what was drawn before; a picture's number follows from its seed."""
    found = []
    for path in sorted(path for path in folder.glob("*.parquet") if path.stem.isdigit()):
        try:
            samples = Samples.load(path)
        except DataError as error:
            raise DataError(f"{str(error).rstrip('.')}; without that file the same command draws its pictures anew.") from None
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
    )
