"""A run.json that somebody else has written or changed: valid, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headscope.models.registry import source_of
from headscope.policy.shape import ModelShape
from headscope.run_folder import RunFolder
from tests.fuzz.mutants import mutated_json, seeds, survives
from tests.policy.shapes import SHAPE

GOOD: dict[str, Any] = {
    "headscope": "0.2.0",
    "model": {**SHAPE.to_dict(), "source": "stickers"},
    "settings": {"keep": "20%", "prompts": ["a"]},
    "versions": {"torch": "2.13.0"},
    "machine": {"device": "cpu"},
    "steps": {"trace": {"seconds": 1.0}},
    "prefix": 7,
    "seed": 0,
    "limit": {"bytes": 5, "text": "20%"},
}


def used(folder: RunFolder, shape: ModelShape) -> None:
    folder.read()
    source_of(folder)
    folder.done("trace")
    folder.note(seed=0)
    folder.check_model(shape)
    folder.begin(shape, "stickers", {"keep": "20%"}, {}, resume=True, overwrite=False)


def test_a_mutant_of_a_run_is_one_sentence_or_of_use(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number, rng in seeds():
        folder.json.write_text(json.dumps(mutated_json(GOOD, rng)))
        survives(lambda: used(folder, SHAPE), number)


def test_an_empty_model_is_one_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for model in ({}, {"name": "toy", "weights": None}, {"name": 5, "weights": "w"}):
        folder.json.write_text(json.dumps({**GOOD, "model": model}))
        survives(lambda: used(folder, SHAPE), 0)
