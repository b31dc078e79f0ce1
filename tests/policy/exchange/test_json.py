"""Headscope's JSON loses nothing, and a file that is damaged or of another kind is one sentence."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.policy import HEAD_TENSORS, CacheSpec, Limit, Policy, export_policy, import_policy, load_policy
from headscope.policy.shipped import shipped
from tests.fuzz.mutants import mutated_json, seeds, survives
from tests.policy.exchange.policies import policies
from tests.policy.shapes import SHAPE


def equal(one: Policy, other: Policy) -> None:
    assert one.same_as(other)
    for name in HEAD_TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.shape, one.limit, one.stride, one.prefix) == (other.shape, other.limit, other.stride, other.prefix)
    assert (dict(one.provenance), dict(one.results)) == (dict(other.provenance), dict(other.results))
    assert (one.rule is None) == (other.rule is None)
    if one.rule is not None and other.rule is not None:
        assert one.rule.facts() == other.rule.facts()
        assert all(torch.equal(tensor, other.rule.tensors()[name]) for name, tensor in one.rule.tensors().items())


@given(policies())
@settings(max_examples=30, deadline=None)
def test_every_number_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> None:
    file = tmp_path_factory.mktemp("json") / "policy.json"
    written = export_policy(policy, file, to="json")
    assert written.notes["lost"] == []
    assert written.notes_path == file
    equal(import_policy(file), policy)
    equal(import_policy(file, "json", SHAPE), policy)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_policies_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    policy = load_policy(name)
    export_policy(policy, tmp_path / "p.json", to="json")
    equal(import_policy(tmp_path / "p.json"), policy)


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    export_policy(Policy.uniform(SHAPE, window=3, heavy=2, bits=8, stride=6, prefix=5), tmp_path / "good.json", to="json")
    return json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))


def imported(facts: object, tmp_path: Path) -> Policy:
    (tmp_path / "p.json").write_text(json.dumps(facts), encoding="utf-8")
    return import_policy(tmp_path / "p.json", "json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"headscope_policy_json": 2}, "version 2, this headscope reads up to 1"),
        ({"headscope_schema": 3}, "written in schema 3"),
        ({"needs": ["rows"]}, r'needs \["rows"\], which this headscope does not know'),
        ({"needs": []}, "layer 0 head 0: bits is 8, a feature that needs does not name"),
        ({"stride": 5}, "stride 5: expected 1"),
        ({"heads": []}, r"heads is \[\], expected an object"),
        ({"heads": {}}, r"lacks heads.window, expected 3 lists \(layers\) of 4 numbers"),
    ],
)
def test_a_fact_that_is_impossible_is_named(facts: dict[str, Any], tmp_path: Path, change: dict, says: str) -> None:
    with pytest.raises(PolicyMismatch, match=rf"p\.json: {says}"):
        imported(facts | change, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("window", 1.5, "layer 1 head 2: window is 1.5, expected a whole number that int32 holds"),
        ("window", 36, "layer 1 head 2: window 36 exceeds"),
        ("bits", True, "layer 1 head 2: bits is true"),
        ("bits", 300, "layer 1 head 2: bits is 300"),
        ("decay", float("nan"), "layer 1 head 2: decay is NaN"),
        ("decay", 2, "layer 1 head 2: decay 2 is above 1"),
        ("prompt", 0, "layer 1 head 2: prompt is 0, a feature that needs does not name"),
        ("prompt", 256, "layer 1 head 2: prompt is 256, expected a whole number that uint8 holds"),
    ],
)
def test_a_number_that_is_impossible_is_named(facts: dict, tmp_path: Path, name: str, value: object, says: str) -> None:
    facts["heads"][name][1][2] = value
    with pytest.raises(PolicyMismatch, match=rf"p\.json: {says}"):
        imported(facts, tmp_path)


def test_heads_that_do_not_fit_and_other_models_are_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PolicyMismatch, match="but toy has 4 layers"):
        import_policy(tmp_path / "good.json", shape=replace(SHAPE, layers=4))
    facts["heads"]["window"][1] = [1, 2, 3]
    with pytest.raises(PolicyMismatch, match=r"heads.window of layer 1 is \[1, 2, 3\], expected 4 numbers"):
        imported(facts, tmp_path)


def test_what_the_file_says_itself_is_not_asked_for(facts: dict[str, Any], tmp_path: Path) -> None:
    for more in ({"prefix": 5}, {"limit": Limit(50_000, CacheSpec(SHAPE, 5))}):
        with pytest.raises(HeadscopeError, match="holds the longest prompt and the limit itself"):
            import_policy(tmp_path / "good.json", shape=SHAPE, **more)


def test_numbers_that_json_has_no_word_for_are_not_written(tmp_path: Path) -> None:
    policy = Policy.uniform(SHAPE, window=3, stride=1, prefix=5, provenance={"note": float("nan")})
    with pytest.raises(DataError, match="no word for"):
        export_policy(policy, tmp_path / "p.json", to="json")
    assert list(tmp_path.iterdir()) == []


def test_a_mutant_is_one_sentence_or_of_use(facts: dict[str, Any], tmp_path: Path) -> None:
    for number, rng in seeds(part=2):
        mutant = mutated_json(facts, random.Random(rng.random()))
        survives(lambda mutant=mutant: imported(mutant, tmp_path).accounting(), number)
