"""Recorded pictures: prompts, seeds and image tokens, with what is needed to draw or replay them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from headscope.errors import DataError
from headscope.storage import write_whole

_FACTS = ("guidance", "temperature", "top_k", "model", "weights")


@dataclass(frozen=True)
class Samples:
    """n pictures as image tokens.

    Attributes:
        prompts: what the user typed; texts: the exact strings that were tokenized.
        seeds: int64 [n]; each picture's own random numbers start there.
        tokens: int32 [n, N], raster order.
        guidance: scale s of u + s(c - u); temperature; top_k (None: all codes).
        model: name; weights: fingerprint of the weights that drew them.
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

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> Samples:
        """The pictures at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        return replace(
            self,
            prompts=[self.prompts[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            seeds=self.seeds[chosen],
            tokens=self.tokens[chosen],
        )

    def save(self, path: str | Path) -> Path:
        """Write a parquet file: columns prompt, text, seed, tokens (list of int32); the rest is metadata."""
        table = pa.table(
            {
                "prompt": pa.array(self.prompts, pa.string()),
                "text": pa.array(self.texts, pa.string()),
                "seed": pa.array(self.seeds.tolist(), pa.int64()),
                "tokens": pa.array(list(self.tokens.numpy().astype(np.int32)), pa.list_(pa.int32())),
            }
        )
        facts = {name: getattr(self, name) for name in _FACTS}
        table = table.replace_schema_metadata({"headscope_samples": json.dumps(facts)})
        return write_whole(path, lambda target: pq.write_table(table, target))

    @classmethod
    def load(cls, path: str | Path) -> Samples:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged or something else.
        """
        try:
            table = pq.read_table(path)
            facts = json.loads((table.schema.metadata or {})[b"headscope_samples"])
            rows = table.to_pydict()
            tokens = torch.tensor(rows["tokens"], dtype=torch.int32)
            seeds = torch.tensor(rows["seed"], dtype=torch.int64)
            return cls(rows["prompt"], rows["text"], seeds, tokens, **{name: facts[name] for name in _FACTS})
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; record pictures with `headscope trace` or `generate` first.") from None
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a file of recorded pictures ({error}); record them again.") from None
