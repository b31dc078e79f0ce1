"""How the attention kernel is cut on a card: by measurement where there is one (settings.json), else by a rule.

settings.json: {card: {"<dtype> <head size> <query heads of a KV head> <fewest bits>": {"block", "warps", "stages"}}};
`headscope bench decode --tune` writes what it found best.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from headscope.storage import write_json

FILE = Path(__file__).with_name("settings.json")


@dataclass(frozen=True)
class Settings:
    """Of the attention kernel.

    Attributes:
        block: slots of a tile.
        warps: of a program.
        stages: tiles that are loaded ahead.
    """

    block: int
    warps: int
    stages: int


def settings_for(device: torch.device, dtype: torch.dtype, size: int, heads_of: int, bits: int = 16) -> Settings:
    """Those measured on this card, or the rule's.

    Args:
        device: where the kernel runs.
        dtype: of keys and values.
        size: numbers of a head.
        heads_of: query heads of a KV head.
        bits: the fewest that a head of the layer is kept in.
    """
    if device.type == "cuda":
        found = _measured().get(torch.cuda.get_device_name(device), {}).get(key_of(dtype, size, heads_of, bits))
        if found is not None:
            return Settings(**found)
    return rule(dtype, size, bits)


def rule(dtype: torch.dtype, size: int, bits: int = 16) -> Settings:
    """Where nothing was measured: what was best on an H100, in tiles whose bytes fit the shared memory several times."""
    row = size * dtype.itemsize
    block = 64 if row <= 256 else 32 if row <= 512 else 16
    if dtype == torch.float32:
        return Settings(block=block, warps=4, stages=2)
    return Settings(block=min(block, 64 if bits == 16 else 32), warps=2, stages=2 if bits == 16 else 3)


def key_of(dtype: torch.dtype, size: int, heads_of: int, bits: int) -> str:
    """The key of settings.json below the card's name."""
    return f"{str(dtype).removeprefix('torch.')} {size} {heads_of} {bits}"


def keep(card: str, key: str, settings: Settings) -> Path:
    """Write what was found best into settings.json.

    Args:
        card: its name, as torch gives it.
        key: see `key_of`.
        settings: the best.
    """
    known = {**_measured(), card: {**_measured().get(card, {}), key: asdict(settings)}}
    _measured.cache_clear()
    return write_json(FILE, known)


@cache
def _measured() -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))
