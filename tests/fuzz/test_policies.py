"""Mutants of a policy file: a policy that can be shown and used, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headscope.policy import CacheSpec, Limit, Policy, load_policy, save_policy
from headscope.runtime.cache_layer import check_prefix
from tests.fuzz.mutants import all_survive, mutated_bytes, mutated_safetensors
from tests.policy.shapes import SHAPE


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    window = torch.arange(12).view(3, 4)
    made = Policy.uniform(
        SHAPE, window=window, heavy=window % 3, decay=0.25, stride=6, prefix=5, provenance={"method": "searched"}
    )
    policy = made.replace(
        limit=Limit(50_000, CacheSpec(SHAPE, 5)), results={"calibration_kl": 0.5, "unseen": {"replay_kl": 0.6}}
    )
    return save_policy(policy, tmp_path_factory.mktemp("good") / "policy.safetensors").read_bytes()


def used(file: Path) -> Policy:
    """What `headscope policy show` and the first step of generating do with a policy."""
    policy = load_policy(file)
    policy.accounting()
    str(policy.provenance.get("method", "hand"))
    for layer in range(policy.shape.layers):
        policy.buckets(layer)
    check_prefix(policy, policy.prefix + 5)
    return policy


@pytest.mark.parametrize("mutated", [mutated_bytes, mutated_safetensors])
def test_a_mutant_of_a_policy_is_one_sentence_or_of_use(good: bytes, tmp_path: Path, mutated: Callable) -> None:
    all_survive(mutated, good, tmp_path / "policy.safetensors", used)
