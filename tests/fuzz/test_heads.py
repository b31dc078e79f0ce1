"""Mutants of a file of head classes: classes that can be used, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headscope.heads import Heads
from headscope.policy import Policy
from tests.fuzz.mutants import all_survive, mutated_bytes, mutated_safetensors
from tests.policy.shapes import SHAPE


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    layer, kv_head = (grid.ravel() for grid in np.indices((3, 4)))
    score = np.linspace(0, 1, 12)
    table = pd.DataFrame({"layer": layer, "kv_head": kv_head, "class": np.where(score > 0.5, "semantic", "spatial")})
    table = table.assign(semantic_score=score, confidence=0.9, stability=1.0, entropy=score / 2)
    facts = {"model": "toy", "architecture": "archi", "weights": "weights", "seed": 0, "features": ["entropy"]}
    return Heads(table, facts).save(tmp_path_factory.mktemp("good") / "heads.safetensors").read_bytes()


def used(file: Path) -> Heads:
    """What the search does with classes: scores go into a policy, classes into groups."""
    heads = Heads.load(file)
    scores = heads.scores()
    if tuple(scores.shape) == (3, 4):
        Policy.uniform(SHAPE, window=3, stride=6, prefix=5, semantic_score=scores)
    assert set(heads.table["class"]) <= {"spatial", "semantic"}
    heads.table.select_dtypes("number").mean()
    heads.save(file.with_name("again.safetensors"))
    return heads


@pytest.mark.parametrize("mutated", [mutated_bytes, mutated_safetensors])
def test_a_mutant_of_head_classes_is_one_sentence_or_of_use(good: bytes, tmp_path: Path, mutated: Callable) -> None:
    all_survive(mutated, good, tmp_path / "heads.safetensors", used)
