"""The rule in a policy file: of this model, whole and possible, or refused in one sentence; readers may leave it alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import PolicyMismatch
from headscope.policy import Policy, Rule, load_policy
from tests.policy.shapes import SHAPE
from tests.policy.test_files import rewritten


def rule(options: int = 3) -> Rule:
    rows = torch.tensor([[1, 0, 1, 4], [7, 0, 1, 8], [7, 12, 0.85, 16]])[:options]
    every = torch.rand(3, 4, options, generator=torch.Generator().manual_seed(0))
    return Rule(("entropy", "prefix_mass"), torch.rand(3, 4, 2), rows, every, every + 0.1, 6)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    policy = Policy.uniform(SHAPE, window=7, bits=8, stride=6, prefix=5).replace(rule=rule())
    return policy.save(tmp_path / "p.safetensors")


def test_it_comes_back_and_a_policy_without_one_has_none(file: Path, tmp_path: Path) -> None:
    back = load_policy(file, SHAPE)
    assert back.rule is not None
    assert back.rule.names == ("entropy", "prefix_mass")
    assert torch.allclose(back.rule.loss, rule().loss, rtol=2e-3)
    assert load_policy(back.replace(rule=None).save(tmp_path / "q.safetensors")).rule is None


def test_what_a_reader_does_not_know_is_left_alone(file: Path) -> None:
    """As a reader of before there were rules reads a file that has one."""
    plain = load_policy(file)
    kept = {**load_file(file), "of_a_later_version": torch.zeros(5)}
    with safe_open(file, framework="pt") as opened:
        strings = {**opened.metadata(), "of_a_later_version": json.dumps([1])}
    save_file(kept, file, metadata=strings)
    assert load_policy(file).same_as(plain)
    assert load_policy(rewritten(file, rule={"version": 2, "shape": "another"})).rule is None


@pytest.mark.parametrize(
    ("tensors", "facts", "said"),
    [
        ({"rule.missed": None}, {}, "lacks the tensor rule.missed"),
        ({"rule.missed": torch.zeros(3, 4, 2).half()}, {}, "tensor rule.missed: is F16 [3, 4, 2], expected F16 [3, 4, 3]"),
        ({"rule.missed": torch.zeros(3, 4, 3)}, {}, "tensor rule.missed: is F32"),
        ({"rule.missed": torch.full((3, 4, 3), 2.0).half()}, {}, "a missed share is outside 0 .. 1"),
        ({"rule.log_loss": torch.full((3, 4, 3), float("nan")).half()}, {}, "loss holds a number that is not finite"),
        ({"rule.log_loss": torch.full((3, 4, 3), 2000.0).half()}, {}, "loss holds a number that is not finite"),
        ({"rule.options": torch.zeros(0, 4)}, {}, "tensor rule.options: is F32 [0, 4]"),
        ({"rule.options": torch.tensor([[1.0, 0, 1, 5]] * 3)}, {}, "an option is no window, heavy, decay and bits"),
        ({"rule.options": torch.tensor([[1.5, 0, 1, 8]] * 3)}, {}, "an option is no window, heavy, decay and bits"),
        ({}, {"version": 1, "features": ["a", "a"], "stride": 6}, "expected 1 to 64 names, each once"),
        ({}, {"version": 1, "features": ["a"], "stride": 6}, "tensor rule.features: is F16 [3, 4, 2]"),
        ({}, {"version": 1, "features": ["a", "b"]}, "lacks stride"),
        ({}, {"features": ["a", "b"], "stride": 6}, "lacks version"),
    ],
)
def test_a_damaged_one_is_refused(file: Path, tensors: dict, facts: dict, said: str) -> None:
    rewritten(file, tensors, **({"rule": facts} if facts else {}))
    with pytest.raises(PolicyMismatch) as error:
        load_policy(file)
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)
