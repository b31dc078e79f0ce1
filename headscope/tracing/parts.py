"""The parts of a trace that is being written: a table an image, and sums of curves for every hundred images.

A table is written before the sums that count it in, both whole or not at all: a run that is killed between the two traces
that image again. Curves of one image of Janus-Pro-1B are 5 MB, so they are never kept for each.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.facts import Kind, check, parsed, shown
from headscope.reading import is_there, read_bytes
from headscope.storage import write_whole
from headscope.tracing.files import read_sums, read_table, write_table

_INCLUDED = Kind(
    "an object of texts", lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
)
TOGETHER = 100  # images whose curves are summed in one file


class Parts:
    """Reads and writes `parts/` of the trace folder `path`, which is to hold `count` images."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.damaged: list[str] = []
        self._sums: dict[int, dict[str, torch.Tensor]] = {}
        self._included: dict[int, dict[str, str]] = {}  # block -> image -> check sum of its table

    def table(self, number: int) -> Path:
        """File of one image."""
        return self.path / "parts" / f"{number:06d}.parquet"

    def _sums_file(self, block: int) -> Path:
        return self.path / "parts" / f"curves-{block:04d}.safetensors"

    def missing(self) -> list[int]:
        """Numbers of the images to do; what is not as it was written is named in `damaged` and is to be done again."""
        self.damaged, self._sums, self._included = [], {}, {}
        for block in range(-(-self.count // TOGETHER)):
            if is_there(file := self._sums_file(block)):
                try:
                    self._sums[block], self._included[block] = _read_sums(file)
                except DataError:
                    self.damaged.append(str(file))
        return [number for number in range(self.count) if not self._is_whole(number)]

    def _is_whole(self, number: int) -> bool:
        file = self.table(number)
        expected = self._included.get(number // TOGETHER, {}).get(str(number))
        if expected is None:
            return False
        with suppress(DataError):
            if _digest(file) == expected:
                return True
        self.damaged.append(str(file.with_suffix("")))
        return False

    def remove(self) -> None:
        """Delete what was written here, temporary files of a process that was killed too; other files stay."""
        digit = "[0-9]"
        for written in (f"{6 * digit}.*parquet", f"curves-{4 * digit}.*safetensors"):
            name, _, ending = written.partition(".*")
            for pattern in (f"{name}.{ending}", f".{name}.*.part.{ending}"):
                for file in (self.path / "parts").glob(pattern):
                    file.unlink(missing_ok=True)
        with suppress(OSError):  # it holds what somebody else put there, or was never made
            (self.path / "parts").rmdir()

    def write(self, tables: dict[int, pd.DataFrame], curves: dict[int, dict[str, torch.Tensor]]) -> None:
        """Write the parts of some images."""
        for block in sorted({number // TOGETHER for number in tables}):
            sums = dict(self._sums.get(block, {}))
            included = dict(self._included.get(block, {}))
            for number in (n for n in tables if n // TOGETHER == block):
                write_table(self.table(number), tables[number])
                if str(number) not in included:  # a damaged table that is done again is counted in already
                    sums = {name: sums.get(name, 0) + value.float() for name, value in curves[number].items()}
                included[str(number)] = _digest(self.table(number))
            write_whole(self._sums_file(block), partial(_save, sums=sums, facts=_facts(sums, included)))
            self._sums[block], self._included[block] = sums, included

    def joined(self) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        """The table of all images and the means of their curves, float32.

        Raises:
            DataError: a part is missing, not readable, or of other curves than the others.
        """
        table = pd.concat([read_table(self.table(number)) for number in range(self.count)], ignore_index=True)
        sums: dict[str, torch.Tensor] = {}
        for block in range(-(-self.count // TOGETHER)):
            for name, value in _read_sums(self._sums_file(block))[0].items():
                if name in sums and sums[name].shape != value.shape:
                    raise DataError(f"{self._sums_file(block)}: {shown(name)} has another shape than in the parts before.")
                sums[name] = sums.get(name, 0) + value
        return table, {name: (value / self.count).float().contiguous() for name, value in sums.items()}


def _save(path: Path, sums: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    save_file(sums, path, facts)


def _read_sums(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Sums, and which images they count in."""
    sums, facts = read_sums(file)
    included = parsed(facts.get("included", "null"), f"{file}: included")
    check({"included": included}, {"included": _INCLUDED}, str(file))
    expected = _facts(sums, included)
    # No format notices a changed byte. Earlier versions wrote no `whole`.
    if facts.get("digest") != expected["digest"] or facts.get("whole", expected["whole"]) != expected["whole"]:
        raise DataError(f"{file}: has other check sums than when it was written; trace again.")
    return sums, included


def _facts(sums: dict[str, torch.Tensor], included: dict[str, str]) -> dict[str, str]:
    """What is written beside sums: the images they count in, and check sums of the numbers and of everything."""
    digest = _digest_of(sums)
    shapes = {name: list(value.shape) for name, value in sums.items()}
    whole = hashlib.sha256(json.dumps([included, digest, shapes], sort_keys=True).encode()).hexdigest()
    return {"included": json.dumps(included), "digest": digest, "whole": whole}


def _digest(file: Path) -> str:
    return hashlib.sha256(read_bytes(file, "file; trace again")).hexdigest()


def _digest_of(curves: dict[str, torch.Tensor]) -> str:
    numbers = hashlib.sha256()
    for name in sorted(curves):
        numbers.update(name.encode() + curves[name].contiguous().numpy().tobytes())
    return numbers.hexdigest()
