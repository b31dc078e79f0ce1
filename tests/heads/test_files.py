"""Head classes come back as they were; anything else is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.heads import Heads


@pytest.fixture
def file(tmp_path: Path) -> Path:
    layer, kv_head = (grid.ravel() for grid in np.indices((2, 3)))
    score = np.linspace(0, 1, 6)
    table = pd.DataFrame({"layer": layer, "kv_head": kv_head, "class": np.where(score > 0.5, "semantic", "spatial")})
    return Heads(table.assign(semantic_score=score, entropy=score / 2), {"model": "toy"}).save(tmp_path / "h.safetensors")


def changed(file: Path, tensors: dict | None = None, **facts: object) -> Path:
    """The same file with tensors and facts replaced."""
    with safe_open(file, "pt") as opened:
        kept = json.loads(opened.metadata()["headscope_heads"])
    save_file(load_file(file) | (tensors or {}), file, {"headscope_heads": json.dumps(kept | facts)})
    return file


COLUMNS = ["layer", "kv_head", "class", "semantic_score", "entropy"]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"schema": None}, "schema is null, expected a whole number"),
        ({"schema": True}, "schema is true"),
        ({"schema": 2}, "written in schema 2, this headscope reads up to 1"),
        ({"columns": "layer"}, 'columns is "layer", expected a list of texts'),
        ({"columns": [*COLUMNS, 5]}, "columns is .*, expected a list of texts"),
        ({"columns": [*COLUMNS, "entropy"]}, "expected each of them once"),
        ({"columns": COLUMNS[:3]}, "expected layer, kv_head, class, semantic_score"),
        ({"columns": [*COLUMNS, "reach"]}, "lacks the tensor feature.reach"),
    ],
)
def test_facts_of_another_type_are_named(file: Path, facts: dict, says: str) -> None:
    with pytest.raises(DataError, match=f"h.safetensors: .*{says}"):
        Heads.load(changed(file, **facts))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"semantic_score": torch.full((2, 3), torch.nan, dtype=torch.float64)}, "semantic_score"),
        ({"semantic_score": torch.full((2, 3), 1.5, dtype=torch.float64)}, "semantic_score"),
        ({"semantic_score": torch.zeros(2, 3, dtype=torch.int64)}, "tensor semantic_score is I64"),
        ({"feature.entropy": torch.zeros(3, 2, dtype=torch.float64)}, r"tensor feature.entropy is F64 \[3, 2\]"),
        ({"semantic": torch.zeros(2**40, 0, dtype=torch.uint8)}, "tensor semantic is U8"),
    ],
)
def test_tensors_of_another_form_are_named(file: Path, tensors: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Heads.load(changed(file, tensors))
