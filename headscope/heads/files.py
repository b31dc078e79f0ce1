"""The file of head classes: safetensors with its facts as JSON, which executes nothing and any tool can read.

Tensors [layers, kv_heads]: `semantic` (uint8), `semantic_score`, `confidence`, `stability` and `feature.NAME`, all float64;
metadata: headscope_heads, the facts as JSON, with the schema among them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.facts import TEXTS, check, clipped, parsed, shown, whole
from headscope.reading import open_tensors
from headscope.storage import write_whole

SPATIAL, SEMANTIC = "spatial", "semantic"
SCHEMA = 1
_KIND = "a file of head classes"
_FACTS = {"schema": whole(1), "columns": TEXTS}
_KEY = "headscope_heads"
_FEATURE = "feature."
_NUMBERS = ("semantic_score", "confidence", "stability")


@dataclass(frozen=True)
class Heads:
    """The classes of all KV heads.

    Attributes:
        table: layer, kv_head, class, semantic_score, confidence, stability, then the features; a row a KV head, layer by layer.
        meta: model, its two fingerprints, seed, features.
    """

    table: pd.DataFrame
    meta: dict[str, Any]

    def scores(self) -> torch.Tensor:
        """float32 [layers, kv_heads]: semantic scores."""
        wide = self.table.pivot(index="layer", columns="kv_head", values="semantic_score")
        return torch.tensor(wide.to_numpy(), dtype=torch.float32)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all.

        Args:
            path: of the file; one that stands there is replaced.
        """
        table = self.table.sort_values(["layer", "kv_head"], kind="stable")
        shape = (int(table["layer"].max()) + 1, int(table["kv_head"].max()) + 1)
        tensors = {"semantic": torch.from_numpy((table["class"] == SEMANTIC).to_numpy().astype(np.uint8).reshape(shape))}
        for name in table.columns.drop(["layer", "kv_head", "class"]):
            values = table[name].to_numpy(dtype=np.float64).reshape(shape)
            tensors[name if name in _NUMBERS else _FEATURE + name] = torch.from_numpy(values.copy())
        kept = {_KEY: json.dumps({**self.meta, "schema": SCHEMA, "columns": list(table.columns)})}
        return write_whole(Path(path), lambda target: save_file(tensors, target, metadata=kept))

    @classmethod
    def load(cls, path: str | Path) -> Heads:
        """Read what `save` wrote.

        Args:
            path: of the file, such as heads.safetensors in a run's folder.

        Raises:
            DataError: missing, not readable, of a later schema, or another kind of file.
        """
        where = str(path)
        with open_tensors(path, "file; run `headscope heads` first", _KIND) as file:
            strings = file.metadata() or {}
            if _KEY not in strings:
                raise DataError(f"{where}: not {_KIND} (a safetensors file without {_KEY}).")
            meta = check(parsed(strings[_KEY], f"{where}: {_KEY}"), _FACTS, where)
            schema, columns = meta.pop("schema"), meta.pop("columns")
            if schema > SCHEMA:
                raise DataError(
                    f"{where}: written in schema {schema}, this headscope reads up to {SCHEMA}; install a newer one."
                )
            if columns[:3] != ["layer", "kv_head", "class"] or columns.count("semantic_score") != 1:
                raise DataError(
                    f"{where}: its columns are {shown(columns)}, expected layer, kv_head, class, semantic_score, then others."
                )
            if len(set(columns)) < len(columns):
                raise DataError(f"{where}: its columns are {shown(columns, 200)}, expected each of them once.")
            tensors = {name: _numbers(file, name, where) for name in ("semantic", *map(_tensor_of, columns[3:]))}
        layers, kv_heads = tensors["semantic"].shape
        table = pd.DataFrame({"layer": np.repeat(range(layers), kv_heads), "kv_head": np.tile(range(kv_heads), layers)})
        table["class"] = np.where(tensors["semantic"].numpy().ravel() > 0, SEMANTIC, SPATIAL)
        for name in columns[3:]:
            table[name] = tensors[_tensor_of(name)].numpy().ravel()
        if not table["semantic_score"].between(0, 1).all():
            raise DataError(f"{where}: a semantic_score is no number from 0 to 1.")
        return cls(table[columns], meta)


def _tensor_of(column: str) -> str:
    return column if column in _NUMBERS else _FEATURE + column


def _numbers(file: safe_open, name: str, where: str) -> torch.Tensor:
    """A tensor [layers, kv_heads], read after the header says that it is one of its type, as large as the classes."""
    if name not in file.keys():  # noqa: SIM118 - it is no dictionary
        raise DataError(f"{where}: lacks the tensor {name}, which its columns name.")
    shape, dtype = file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()
    expected = ("U8" if name == "semantic" else "F64", file.get_slice("semantic").get_shape())
    if (dtype, shape) != expected or len(shape) != 2 or 0 in shape:
        raise DataError(
            f"{where}: tensor {name} is {dtype} {clipped(str(shape))}, expected {expected[0]} [layers, KV heads] as all others."
        )
    return file.get_tensor(name)
