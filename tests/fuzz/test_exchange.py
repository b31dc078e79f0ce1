"""Mutants of other tools' files: a policy that can be used, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headscope.policy import CacheSpec, Limit, Policy, export_policy, import_policy
from tests.fuzz.mutants import all_survive, mutated_bytes, mutated_json, seeds, survives
from tests.policy.shapes import SHAPE

LIMIT = Limit.parse("60%", CacheSpec(SHAPE, 5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy = Policy.uniform(SHAPE, window=7, heavy=0, anchor=1, stride=1, prefix=5)
    return export_policy(policy, tmp_path / "pattern", to="duo_attention").path


def test_a_mutant_of_duo_attention_is_one_sentence_or_of_use(folder: Path) -> None:
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(good["config.json"])
    for number, rng in seeds(part=2):
        (folder / "full_attention_heads.tsv").write_bytes(mutated_bytes(good["full_attention_heads.tsv"], rng))
        limit = LIMIT if number % 2 else None
        survives(lambda limit=limit: import_policy(folder, None, SHAPE, None if limit else 5, limit).accounting(), number)
        (folder / "full_attention_heads.tsv").write_bytes(good["full_attention_heads.tsv"])
        (folder / "config.json").write_text(json.dumps(mutated_json(config, rng)), encoding="utf-8")
        survives(lambda limit=limit: import_policy(folder, None, SHAPE, None if limit else 5, limit).accounting(), number)
        (folder / "config.json").write_bytes(good["config.json"])


@pytest.mark.parametrize("source", [None, "headkv"])
@pytest.mark.parametrize("mutated", [mutated_bytes, lambda data, rng: json.dumps(mutated_json(json.loads(data), rng)).encode()])
def test_a_mutant_of_headkv_is_one_sentence_or_of_use(tmp_path: Path, mutated: Callable, source: str | None) -> None:
    good = json.dumps({f"{layer}-{head}": [0.5, layer + head] for layer in range(3) for head in range(8)}).encode()
    read = lambda file: import_policy(file, source, SHAPE, limit=LIMIT).accounting()  # noqa: E731
    all_survive(mutated, good, tmp_path / "heads.json", read)
