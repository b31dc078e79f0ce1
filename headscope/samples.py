"""Recorded images: prompts, seeds and image tokens, with what is needed to generate or replay them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headscope.errors import DataError
from headscope.facts import NUMBER, TEXT, check, optional, or_null, parsed, said, whole
from headscope.reading import read_parquet
from headscope.storage import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

_FACTS = {
    "guidance": NUMBER,
    "temperature": NUMBER,
    "top_k": or_null(whole(1)),
    "model": TEXT,
    "weights": TEXT,
    "cfg_interval": optional(whole(-1)),
}
_KEY = b"headscope_samples"
_KIND = "a file of recorded images"


@dataclass(frozen=True)
class Samples:
    """n images as tokens.

    Attributes:
        prompts: what the user typed, one an image.
        texts: the exact strings that were tokenized.
        seeds: int64 [n]; each image's own random numbers start there.
        tokens: int32 [n, N], raster order.
        guidance: scale s of u + s(c - u).
        temperature: that logits were divided by.
        top_k: codes that sampling chose among, None: all.
        model: its name.
        weights: fingerprint of the weights that generated them.
        cfg_interval: tokens that were guided, see `Sampling`; -1 all.
    """

    prompts: list[str]
    texts: list[str]
    seeds: torch.Tensor
    tokens: torch.Tensor
    guidance: float
    temperature: float
    top_k: int | None
    model: str
    weights: str
    cfg_interval: int = -1

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> Samples:
        """The images at `indices`, in that order.

        Args:
            indices: places of images, 0 .. n - 1; negative ones count from the end, and one may come twice.
        """
        chosen = [int(i) for i in indices]
        return replace(
            self,
            prompts=[self.prompts[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            seeds=self.seeds[chosen],
            tokens=self.tokens[chosen],
        )

    def first(self, count: int | None) -> Samples:
        """The first `count` images; all of them where there are not so many.

        Args:
            count: images from the first, 0 or more; None for all.
        """
        return self.select(range(len(self) if count is None else min(count, len(self))))

    def save(self, path: str | Path) -> Path:
        """Write a parquet file, whole or not at all: columns prompt, text, seed, tokens (list of int32); the rest is metadata.

        Args:
            path: of the file; one that stands there is replaced.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        tokens = list(self.tokens.numpy().astype(np.int32))
        table = pa.table([self.prompts, self.texts, self.seeds.tolist(), tokens], schema=_columns())
        facts = {name: getattr(self, name) for name in _FACTS}
        table = table.replace_schema_metadata({_KEY: json.dumps(facts)})
        return write_whole(path, lambda target: pq.write_table(table, target))

    @classmethod
    def load(cls, path: str | Path) -> Samples:
        """Read what `save` wrote.

        Args:
            path: of the file, such as samples.parquet in the folder of a trace.

        Raises:
            DataError: the file is missing, not readable or something else.
        """
        import pyarrow as pa

        columns = _columns()
        missing = "file; record images with `headscope trace` or `generate` first"
        table = read_parquet(path, missing, _KIND)
        try:
            text = (table.schema.metadata or {})[_KEY]
            rows = table.select(columns.names).cast(columns)  # names that are missing or twice are refused
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DataError(f"{path}: not {_KIND} ({said(error)}).") from None
        facts = check(parsed(text, f"{path}: {_KEY.decode()}"), _FACTS, str(path))
        if nulls := [name for name in columns.names if rows[name].null_count]:
            raise DataError(f"{path}: not {_KIND} (column {nulls[0]} has an empty cell).")
        tokens = _rectangle(rows["tokens"].combine_chunks(), str(path))
        seeds = torch.from_numpy(rows["seed"].to_numpy().copy())
        known: dict[str, Any] = {"top_k": None, **{name: facts[name] for name in _FACTS if name in facts}}
        return cls(rows["prompt"].to_pylist(), rows["text"].to_pylist(), seeds, tokens, **known)


def _columns() -> pa.Schema:
    """Of the file. Here and not at the top: who generates without saving needs no pyarrow."""
    import pyarrow as pa

    return pa.schema([("prompt", pa.string()), ("text", pa.string()), ("seed", pa.int64()), ("tokens", pa.list_(pa.int32()))])


def _rectangle(lists: pa.ListArray, where: str) -> torch.Tensor:
    """int32 [n, N]: the tokens of n images, which are all of one length."""
    lengths, flat = lists.value_lengths().to_numpy(), lists.flatten()
    if flat.null_count or (len(flat) and flat.to_numpy().min() < 0) or (lengths != lengths[:1]).any():
        raise DataError(f"{where}: not {_KIND} (tokens that are no codes from 0, or of images of several lengths).")
    return torch.from_numpy(flat.to_numpy().reshape(len(lists), -1 if len(flat) else 0).copy())
