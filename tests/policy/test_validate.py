"""Policy files checked entirely: their own reckoning, their own limit, a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import BudgetError, DataError, PolicyMismatch
from headscope.policy import CacheSpec, Limit, Policy, load_policy, save_policy, validate
from headscope.policy.shipped import shipped
from tests.policy.shapes import SHAPE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    policy = Policy.uniform(SHAPE, window=6, heavy=2, stride=6, prefix=5, bits=8)
    return save_policy(policy.replace(limit=Limit(50_000, CacheSpec(SHAPE, 5))), tmp_path / "p.safetensors")


def rewritten(file: Path, **metadata: object) -> Path:
    with safe_open(file, framework="pt") as opened:
        strings = dict(opened.metadata())
    save_file(load_file(file), file, metadata=strings | {name: json.dumps(value) for name, value in metadata.items()})
    return file


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_policy_is_valid(name: str) -> None:
    found = validate(name, load_policy(name).shape)
    assert found.accounted
    policy = found.policy
    parts = {"bits": policy.quantized, "prompt": bool(policy.drops_prompt.any()), "score": bool(policy.other_scores)}
    assert found.needs == tuple(name for name, has in parts.items() if has)


def test_what_a_file_says_of_itself_is_told(file: Path) -> None:
    found = validate(file, SHAPE)
    assert (found.schema, found.needs, found.accounted) == (2, ("bits",), True)
    assert found.policy.same_as(load_policy(file))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bytes": 5}, r"p\.safetensors: accounting\.bytes is 5, expected 14,592 for 1 x 2 streams in bfloat16"),
        ({"plain_bytes": 5}, r"accounting\.plain_bytes is 5, expected 31,488"),
        ({"batch": 2}, r"accounting\.bytes is .*, expected .* for 2 x 2 streams"),
        ({"dtype": "int3"}, r'accounting: dtype is "int3", expected one of float32'),
        ({"prefix": -1}, "accounting: prefix is -1, expected a whole number"),
        ({"bytes": None}, "accounting: bytes is null"),
    ],
)
def test_a_wrong_reckoning_is_refused(file: Path, changes: dict, says: str) -> None:
    told = load_policy(file).accounting()
    with pytest.raises(PolicyMismatch, match=says):
        validate(rewritten(file, accounting={**told, **changes}))


def test_a_file_above_its_own_limit_is_refused(file: Path) -> None:
    policy = load_policy(file)
    assert policy.limit is not None
    save_policy(policy.replace(limit=replace(policy.limit, bytes=900)), file)
    with pytest.raises(BudgetError, match=r"p\.safetensors: takes 14,592 bytes for .*, expected at most 900;"):
        validate(file)


def test_another_model_is_refused(file: Path) -> None:
    with pytest.raises(PolicyMismatch, match="made for other weights"):
        validate(file, replace(SHAPE, weights="others"))


def test_other_files_are_one_sentence(file: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / "x.pt")
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
    for name, says in {
        "x.pt": "not readable as safetensors",
        "x.safetensors": "not a policy of headscope",
        "cut.safetensors": "not readable as safetensors",
        ".": "is a folder",
        "none": "no such policy file",
    }.items():
        with pytest.raises(DataError, match=says):
            validate(tmp_path / name)
