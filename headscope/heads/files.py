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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.storage import write_whole

SPATIAL, SEMANTIC = "spatial", "semantic"
SCHEMA = 1
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
        """Write a safetensors file, whole or not at all."""
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

        Raises:
            DataError: missing, damaged, of a later schema, or another kind of file.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file; run `headscope heads` first.")
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if meta.pop("schema") > SCHEMA:
                raise ValueError("written by a later version of headscope")
            columns = meta.pop("columns")
            layers, kv_heads = tensors["semantic"].shape
            table = pd.DataFrame({"layer": np.repeat(range(layers), kv_heads), "kv_head": np.tile(range(kv_heads), layers)})
            table["class"] = np.where(tensors["semantic"].numpy().ravel() > 0, SEMANTIC, SPATIAL)
            for name in columns[3:]:
                table[name] = tensors[name if name in _NUMBERS else _FEATURE + name].numpy().ravel()
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a file of head classes ({error}); run `headscope heads` again.") from None
        return cls(table[columns], meta)
