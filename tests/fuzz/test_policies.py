"""Mutants of a policy file: a policy that can be shown and used, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headscope.policy import CacheSpec, Limit, Policy, diff, load_policy, merge, read_edits, save_policy, unmeasured, validate
from headscope.reporting.card import card_text
from headscope.runtime.cache_layer import check_prefix
from tests.fuzz.mutants import all_survive, mutated_bytes, mutated_safetensors
from tests.policy.shapes import SHAPE
from tests.policy.test_rule import rule as some_rule


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    window = torch.arange(12).view(3, 4)
    made = Policy.uniform(
        SHAPE, window=window, heavy=window % 3, decay=0.25, stride=6, prefix=5, provenance={"method": "searched"}
    )
    policy = made.replace(
        limit=Limit(50_000, CacheSpec(SHAPE, 5)),
        results={"calibration_kl": 0.5, "unseen": {"replay_kl": 0.6}},
        rule=some_rule(),
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
    unmeasured(policy)
    card_text(policy, "p", "p.png")
    return policy


def checked(file: Path) -> None:
    """What `headscope policy validate` does, and `diff` with itself."""
    policy = validate(file).policy
    assert diff(policy, policy).same


@pytest.mark.parametrize("mutated", [mutated_bytes, mutated_safetensors])
def test_a_mutant_of_a_policy_is_one_sentence_or_of_use(good: bytes, tmp_path: Path, mutated: Callable) -> None:
    all_survive(mutated, good, tmp_path / "policy.safetensors", used)
    all_survive(mutated, good, tmp_path / "policy.safetensors", checked)


def test_a_mutant_of_edits_is_one_sentence_or_merged(good: bytes, tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(good)
    base = load_policy(tmp_path / "base.safetensors")
    text = (
        '[[edit]]\nlayers = "0-1,2"\nheads = [1]\nwindow = 3\nbits = 8\ndecay = 0.5\nper_visit = true\n[[edit]]\nlayers = 2\n'
    )

    def merged(file: Path) -> Policy:
        return merge(base, read_edits(file), base.limit)

    all_survive(mutated_bytes, (text + 'from = "base.safetensors"\n').encode(), tmp_path / "edits.toml", merged)
