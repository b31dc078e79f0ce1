"""What fits: the largest batch for a policy, the largest share of the cache for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

import torch

from headscope.pipeline.memory import free_bytes
from headscope.policy import CacheSpec, Policy

# Shares shown beside the policies asked about.
SHARES = (1.0, 0.5, 0.3, 0.2, 0.15, 0.1)


@dataclass(frozen=True)
class Row:
    """A cache, and how often it fits.

    Attributes:
        name: of the policy, "plain", or a share such as "keep 20%".
        kept: share of the plain cache.
        bytes: of one image.
        images: how many fit.
    """

    name: str
    kept: float
    bytes: int
    images: int


@dataclass(frozen=True)
class Fits:
    """What fits.

    Attributes:
        rows: a cache each.
        allowed: share of the plain cache that `batch` images may keep, above 1 all of it.
        sentence: that in words.
        keep: the limit to search with, such as "12.5%"; None where none is needed or none helps.
    """

    rows: tuple[Row, ...]
    allowed: float
    sentence: str
    keep: str | None


def what_fits(spec: CacheSpec, room: int, policies: Mapping[str, Policy], shares: Sequence[float] = SHARES) -> Fits:
    """Count images by everything that is allocated for a cache; the weights and the work of a step come on top.

    Args:
        spec: what a cache is counted for, and how many images are to be generated together.
        room: bytes for the cache.
        policies: by name, beside the plain cache and the usual shares of it.
        shares: of the plain cache.
    """
    one = spec.replace(batch=1)
    plain, smallest = one.full_bytes, one.smallest_bytes
    rows = [
        Row("plain" if share == 1.0 else f"keep {100 * share:g}%", share, floor(share * plain), room // floor(share * plain))
        for share in shares
        if share * plain >= smallest
    ]
    for name, policy in policies.items():
        nbytes = one.replace(prefix=max(spec.prefix, policy.prefix)).bytes_of(policy)
        rows.append(Row(name, nbytes / plain, nbytes, max(room - policy.table_bytes, 0) // nbytes))  # all images share tables
    allowed = room / (spec.batch * plain)
    keep = f"{floor(1000 * allowed) / 10:g}%" if smallest / plain <= allowed < 1 else None
    return Fits(tuple(rows), allowed, _sentence(spec.batch, allowed, smallest / plain, keep), keep)


def _sentence(batch: int, allowed: float, smallest: float, keep: str | None) -> str:
    images = "1 image" if batch == 1 else f"{batch:,} images"
    if allowed >= 1:
        return f"A batch of {images} fits with the plain cache: no policy is needed."
    if keep is None:
        return (
            f"A batch of {images} does not fit with any policy: the smallest keeps {smallest:.1%}, "
            f"there is room for {allowed:.1%}; generate {max(int(batch * allowed / smallest), 0):,} at a time."
        )
    return f"A batch of {images} may keep {keep}."


def free_memory(device: str) -> int:
    """Bytes that are free on a device now; three quarters of it on a CPU, where others live too."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return free_bytes() * 3 // 4
