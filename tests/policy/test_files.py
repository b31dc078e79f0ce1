"""A policy file comes back as it was; anything else is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import DataError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.policy import CacheSpec, Limit, Policy, load_policy, save_policy
from headscope.policy.shipped import shipped
from tests.policy.shapes import SHAPE


@pytest.fixture
def policy() -> Policy:
    window = torch.arange(12).view(3, 4)
    made = Policy.uniform(SHAPE, window=window, heavy=window % 3, decay=0.25, stride=6, prefix=5, provenance={"method": "test"})
    return made.replace(limit=Limit(50_000, CacheSpec(SHAPE, 5)), results={"kl": 0.5})


@pytest.fixture
def file(policy: Policy, tmp_path: Path) -> Path:
    return save_policy(policy, tmp_path / "p.safetensors")


def rewritten(file: Path, tensors: dict | None = None, **metadata: object) -> Path:
    """The same file with tensors and metadata replaced (None removes)."""
    kept = load_file(file)
    with safe_open(file, framework="pt") as opened:
        strings = dict(opened.metadata())
    for name, value in (tensors or {}).items():
        if value is None:
            del kept[name]
        else:
            kept[name] = value
    strings |= {name: json.dumps(value) for name, value in metadata.items()}
    save_file(kept, file, metadata=strings)
    return file


def test_a_policy_comes_back_as_it_was(policy: Policy, file: Path) -> None:
    back = load_policy(file, SHAPE)
    assert back.same_as(policy)
    assert back.shape == SHAPE
    assert (dict(back.provenance), dict(back.results)) == (policy.provenance, policy.results)
    assert back.limit == policy.limit
    with safe_open(file, framework="pt") as opened:
        accounting = json.loads(opened.metadata()["accounting"])
    assert 0 < accounting["kept_ratio"] < 1
    assert accounting["plain_bytes"] == 2 * 12 * 41 * 2 * 8 * 2


@pytest.mark.parametrize("short", [False, True])
def test_prompts_are_named_where_they_are_needed(policy: Policy, file: Path, short: bool) -> None:
    prompt = torch.ones(3, 4, dtype=torch.uint8)
    prompt[1, 2] = not short
    back = load_policy(save_policy(policy.replace(prompt=prompt), file), SHAPE)
    assert back.prompt.tolist() == prompt.tolist()
    assert back.same_as(policy) == (not short)  # as before there were prompts
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["needs"]) == ["prompt"] * short


def test_damaged_files_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) - 10):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not readable as safetensors"):
            load_policy(file)
    with pytest.raises(DataError, match="no such policy file"):
        load_policy(tmp_path / "none.safetensors")
    other = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(DataError, match="not a policy of headscope"):
        load_policy(other)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"heavy": None}, "lacks the tensor heavy"),
        ({"window": torch.zeros(3, 5, dtype=torch.int32)}, r"tensor window: has shape \(3, 5\), expected \(3, 4\)"),
        ({"window": torch.full((3, 4), -2, dtype=torch.int32)}, "layer 0 head 0: window -2"),
        ({"decay": torch.zeros(3, 4, dtype=torch.float64)}, "tensor decay: has dtype"),
    ],
)
def test_impossible_tensors_are_refused(file: Path, tensors: dict, says: str) -> None:
    with pytest.raises(PolicyMismatch, match=says):
        load_policy(rewritten(file, tensors))


def test_later_schemas_and_garbled_metadata_are_refused(file: Path, policy: Policy) -> None:
    with pytest.raises(PolicyMismatch, match="written in schema 3, this headscope reads up to 2"):
        load_policy(rewritten(file, headscope_schema=3))
    save_policy(policy, file)
    with pytest.raises(PolicyMismatch, match="stride 5"):
        load_policy(rewritten(file, stride=5))
    save_policy(policy, file)
    with pytest.raises(PolicyMismatch, match=r"lacks model\.layers, expected a whole number"):
        load_policy(rewritten(file, model={"name": "x"}))


def with_metadata(file: Path, name: str, text: str) -> Path:
    with safe_open(file, framework="pt") as opened:
        strings = dict(opened.metadata())
    save_file(load_file(file), file, metadata={**strings, name: text})
    return file


@pytest.mark.parametrize(("name", "text"), [("format", "pt"), ("note", "no JSON"), ("", "["), ("made_by", "1e999")])
def test_notes_of_other_tools_are_left_alone(file: Path, policy: Policy, name: str, text: str) -> None:
    assert load_policy(with_metadata(file, name, text), SHAPE).same_as(policy)


LIMIT = {"bytes": 50_000, "share": None, "prefix": 5, "batch": 1, "streams": 2, "dtype": "float32", "count_prefix": True}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("headscope_schema", None, "headscope_schema is null, expected a whole number"),
        ("headscope_schema", 1.0, "headscope_schema is 1.0"),
        ("headscope_schema", 0, "headscope_schema is 0"),
        ("stride", True, "stride is true"),
        ("stride", [6], r"stride is \[6\]"),
        ("stride", 2**70, "stride is 1180591620717411303424"),
        ("prefix", float("nan"), "prefix is NaN"),
        ("prefix", float("inf"), "prefix is Infinity"),
        ("prefix", -1, "prefix is -1"),
        ("prefix", "5", 'prefix is "5"'),
        ("model", "toy", 'model is "toy", expected an object'),
        ("model", {**SHAPE.to_dict(), "name": "a\nb"}, "model.name is"),
        ("model", {**SHAPE.to_dict(), "head_dim": 2**70}, "model.head_dim is"),
        ("model", {**SHAPE.to_dict(), "query_heads": 7}, "model.query_heads is 7, expected a multiple"),
        ("model", {**SHAPE.to_dict(), "geometry": None}, "model.geometry is null"),
        ("model", {**SHAPE.to_dict(), "geometry": {"rows": 6}}, "geometry: lacks cols"),
        ("accounting", 3, "accounting is 3"),
        ("provenance", [1], r"provenance is \[1\]"),
        ("limit", "20%", 'limit is "20%"'),
        ("limit", {"bytes": 5}, "lacks limit.batch"),
        ("limit", {**LIMIT, "streams": 0}, "limit.streams is 0"),
        ("limit", {**LIMIT, "dtype": "int4"}, 'limit.dtype is "int4"'),
        ("limit", {**LIMIT, "count_prefix": None}, "limit.count_prefix is null"),
        ("limit", {**LIMIT, "share": "a fifth"}, 'limit.share is "a fifth"'),
        ("needs", ["rows"], r'needs \["rows"\], which this headscope does not know'),
        ("needs", None, "needs is null"),
        ("lead", 3, "lead is 3, a feature that needs does not name; expected 6"),
        ("score", "expected", 'score is "expected", expected received, or a list'),
        ("results", "good", 'results is "good"'),
    ],
)
def test_metadata_of_another_type_or_range_is_named(file: Path, name: str, value: object, says: str) -> None:
    with pytest.raises(PolicyMismatch, match=f"p.safetensors: {says}"):
        load_policy(rewritten(file, **{name: value}))


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000])
def test_a_known_field_that_is_no_json_is_named(file: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"p\.safetensors: stride: is not JSON"):
        load_policy(with_metadata(file, "stride", text))


@pytest.mark.parametrize(
    ("tensor", "value", "says"),
    [
        ("bits", 8, "bits is 8, a feature that needs does not name"),
        ("bits", 3, "bits 3, expected 16, 8 or 4"),
        ("prompt", 0, "prompt is 0, a feature that needs does not name"),
        ("prompt", 3, "prompt 3 is above 1"),
    ],
)
def test_what_only_another_version_can_have_written_is_refused(file: Path, tensor: str, value: int, says: str) -> None:
    changed = load_file(file)[tensor].clone()  # older safetensors map the file, which is rewritten below
    changed[1, 2] = value
    if value == 3:
        file = rewritten(file, needs=[tensor])
    with pytest.raises(PolicyMismatch, match=f"layer 1 head 2: .*{says}"):
        load_policy(rewritten(file, {tensor: changed}))
    with pytest.raises(PolicyMismatch, match=f"lacks the tensor {tensor}"):
        load_policy(rewritten(file, {tensor: None}))


def test_a_policy_for_any_weights_fits_them_all(policy: Policy, tmp_path: Path) -> None:
    file = save_policy(policy.replace(shape=replace(SHAPE, weights="")), tmp_path / "q.safetensors")
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["model"])["weights"] is None
    for weights in ("w", "others"):
        assert load_policy(file, replace(SHAPE, weights=weights)).shape.weights == weights


def old(file: Path, **provenance: object) -> Path:
    """The file as schema 1 had it."""
    kept = {name: tensor for name, tensor in load_file(file).items() if name not in ("bits", "prompt")}
    with safe_open(file, framework="pt") as opened:
        strings = {name: text for name, text in opened.metadata().items() if name not in ("needs", "lead", "score", "limit")}
    save_file(kept, file, metadata={**strings, "headscope_schema": "1", "provenance": json.dumps(provenance)})
    return file


def test_files_of_schema_1_are_read(policy: Policy, file: Path) -> None:
    limit = {"bytes": 40_000, "batch": 3, "streams": 1, "dtype": "bfloat16", "of": "image"}
    made = load_policy(old(file, method="hand", limit=limit), SHAPE)
    assert made.same_as(policy)
    assert made.provenance == {"method": "hand"}
    spec = CacheSpec(SHAPE, 5, batch=3, streams=1, dtype="bfloat16", count_prefix=False)
    assert made.limit == Limit(40_000, spec)
    assert made.accounting()["bytes"] == spec.bytes_of(policy)
    assert load_policy(old(file), SHAPE).limit is None
    for name, value in (("of", "cells"), ("batch", 0), ("bytes", None)):
        with pytest.raises(PolicyMismatch, match=f"provenance.limit.{name}"):
            load_policy(old(file, limit={**limit, name: value}))


@pytest.mark.parametrize("provenance", [{}, {"method": "hand"}, {"note": float("nan")}])
def test_what_was_valid_stays_valid(policy: Policy, tmp_path: Path, provenance: dict) -> None:
    made = load_policy(save_policy(policy.replace(provenance=provenance), tmp_path / "q.safetensors"))
    assert made.accounting()["bytes"] > 0
    assert str(made.provenance) == str(provenance)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_policies_are_of_use(name: str) -> None:
    policy = load_policy(name)
    assert policy.limit is not None
    assert policy.accounting()["bytes"] <= policy.limit.bytes


@pytest.mark.parametrize("wrong", [{"seed": torch.zeros(1)}])
def test_what_could_not_be_read_back_is_not_written(policy: Policy, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(PolicyMismatch, match="provenance"):
        save_policy(policy.replace(provenance=wrong), tmp_path / "q.safetensors")
    assert not list(tmp_path.iterdir())


def test_heads_of_another_size_are_refused_whatever_the_fingerprint_says(file: Path) -> None:
    with pytest.raises(PolicyMismatch, match="made for 8 head dim, toy has 16"):
        load_policy(file, replace(SHAPE, head_dim=16))


def test_a_name_that_no_file_can_have_is_one_sentence() -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        load_policy("x" * 5_000)


def test_a_policy_for_another_model_is_refused(file: Path) -> None:
    with pytest.raises(PolicyMismatch, match=r"made for toy \(3 layers, 4 KV heads, 6 x 6 tokens\), but toy has 4 layers"):
        load_policy(file, replace(SHAPE, layers=4))
    with pytest.raises(PolicyMismatch, match="6 x 7 tokens"):
        load_policy(file, replace(SHAPE, geometry=Geometry(6, 7)))
    with pytest.raises(PolicyMismatch, match="made for another architecture"):
        load_policy(file, replace(SHAPE, architecture="other"), accept_other_weights=True)


def test_a_fine_tune_must_be_accepted_and_is_recorded(file: Path) -> None:
    tuned = replace(SHAPE, name="tuned", weights="tuned-weights")
    with pytest.raises(PolicyMismatch, match="accept_other_weights"):
        load_policy(file, tuned)
    accepted = load_policy(file, tuned, accept_other_weights=True)
    assert accepted.provenance["accepted_other_weights"] == {"made_for": "weights", "used_on": "tuned-weights"}
    assert accepted.shape == tuned


def test_a_file_is_not_overwritten_unasked(file: Path, policy: Policy) -> None:
    with pytest.raises(DataError, match="exists already"):
        save_policy(policy, file, overwrite=False)
