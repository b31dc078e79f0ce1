"""Kinds of scores in policies: files, JSON, bytes, diff and merge; what is missing or of another model is one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import BudgetError, HeadscopeError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.policy import (
    SCORES,
    CacheSpec,
    Edit,
    Limit,
    Policy,
    ScoreTable,
    check_fits_limit,
    diff,
    export_policy,
    import_policy,
    load_policy,
    merge,
    register_score,
    save_policy,
    validate,
)
from tests.policy.shapes import SHAPE

HEADS = (1, 4, 6)  # of layer 0 head 1, layer 1 head 0 and head 2
BYTES = 3 * 4 + 3 * 2 * 2 + 3 * 2 * SHAPE.geometry.rows + 3 * 2 * SHAPE.geometry.tokens


def tables(heads: tuple[int, ...] = HEADS, rank: int = 2, seed: int = 0) -> ScoreTable:
    generator, grid = torch.Generator().manual_seed(seed), SHAPE.geometry

    def codes(length: int) -> torch.Tensor:
        return torch.randint(-128, 128, (len(heads), rank, length), generator=generator).to(torch.int8)

    scale = torch.rand(len(heads), rank, generator=generator).half()
    return ScoreTable(torch.tensor(heads, dtype=torch.int32), scale, codes(grid.rows), codes(grid.tokens))


def scored(heads: tuple[int, ...] = HEADS, kind: int = 2) -> Policy:
    score = torch.zeros(SHAPE.layers * SHAPE.kv_heads, dtype=torch.uint8)
    score[list(heads)] = kind
    policy = Policy.uniform(SHAPE, window=3, heavy=2, score=score.view(SHAPE.layers, SHAPE.kv_heads), stride=6, prefix=5)
    return policy.replace(tables=tables(heads) if kind == 2 else None)


def test_a_file_holds_kinds_and_tables_and_only_where_they_are_needed(tmp_path: Path) -> None:
    policy = scored()
    file = save_policy(policy, tmp_path / "p.safetensors")
    back = load_policy(file, SHAPE)
    assert back.same_as(policy)
    assert back.score.tolist() == policy.score.tolist()
    assert back.tables is not None
    assert back.tables.digest() == tables().digest()
    assert back.table_bytes == BYTES == sum(load_file(file)[f"score.{p}"].nbytes for p in ("heads", "scale", "rows", "places"))
    assert validate(file).needs == ("score",)
    assert not scored(kind=1).same_as(scored())
    assert not policy.replace(tables=tables(seed=1)).same_as(policy)
    plain = save_policy(policy.replace(score=torch.zeros_like(policy.score), tables=None), tmp_path / "plain.safetensors")
    with safe_open(plain, framework="pt") as opened:
        assert {name.split(".")[0] for name in opened.keys()} & {"score"} == set()  # noqa: SIM118 - it is no dictionary
        assert json.loads(opened.metadata()["score"]) == "received"
        assert json.loads(opened.metadata()["needs"]) == []


def test_json_holds_the_same(tmp_path: Path) -> None:
    policy = scored()
    export_policy(policy, tmp_path / "p.json", "json")
    assert import_policy(tmp_path / "p.json", "json").same_as(policy)
    facts = json.loads((tmp_path / "p.json").read_text())
    facts["heads"]["score.rows"][0][0][0] = 300
    (tmp_path / "p.json").write_text(json.dumps(facts))
    with pytest.raises(PolicyMismatch, match=r"heads.score.rows is .*, expected lists of numbers that int8 holds"):
        import_policy(tmp_path / "p.json", "json")


def rewritten(file: Path, tensors: dict[str, torch.Tensor | None], **metadata: object) -> Path:
    with safe_open(file, framework="pt") as opened:
        strings = opened.metadata() | {name: json.dumps(value) for name, value in metadata.items()}
        found = {name: opened.get_tensor(name) for name in opened.keys()} | tensors  # noqa: SIM118
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, file, metadata=strings)
    return file


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({}, {"needs": []}, r'score is \["received", "value", "expected"\], a feature that needs does not name'),
        ({}, {"score": "received"}, 'score is "received", a feature that needs names'),
        ({}, {"score": ["received", "value", "nobodys"]}, 'score "nobodys" is not known here, expected one of received, value'),
        ({}, {"score": ["received"]}, r'layer 0 head 1: score 2, expected a place in \["received"\]'),
        ({}, {"score": 3}, "score is 3, expected received, or a list of kinds of scores"),
        ({"score": None}, {}, "lacks the tensor score"),
        ({"score.rows": None}, {}, "lacks the tensor score.rows, which tables of scores have"),
        (
            {f"score.{part}": None for part in ("heads", "scale", "rows", "places")},
            {},
            "layer 0 head 1: score expected needs a",
        ),
        (
            {"score.places": torch.zeros(3, 2, 35, dtype=torch.int8)},
            {},
            r"score.places: is I8 \(3, 2, 35\), expected I8 \(heads",
        ),
        ({"score.rows": torch.zeros(3, 2, 7, dtype=torch.int8)}, {}, r"score.rows: is I8 \(3, 2, 7\), expected .* of 6 rows"),
        ({"score.rows": torch.zeros(3, 2, 6)}, {}, "score.rows: is F32"),
        ({"score.scale": torch.zeros(3, 65).half()}, {}, r"score.heads: is .* at most 12 heads and rank 64 for"),
        ({"score.scale": torch.full((3, 2), torch.nan).half()}, {}, "score.scale: holds a number that is not finite"),
        ({"score.heads": torch.tensor([1, 4, 12], dtype=torch.int32)}, {}, "score.heads: expected rising numbers from 0 to 11"),
        ({"score.heads": torch.tensor([1, 4, 5], dtype=torch.int32)}, {}, "layer 1 head 2: score expected needs a table"),
    ],
)
def test_what_is_missing_or_of_another_model_is_named(
    tensors: dict[str, torch.Tensor | None], metadata: dict[str, object], says: str, tmp_path: Path
) -> None:
    file = rewritten(save_policy(scored(), tmp_path / "p.safetensors"), tensors, **metadata)
    with pytest.raises(PolicyMismatch, match=says):
        load_policy(file)


def test_tables_of_another_grid_are_refused() -> None:
    policy = scored()
    other = replace(SHAPE, geometry=Geometry(SHAPE.geometry.cols, SHAPE.geometry.rows + 1))
    with pytest.raises(PolicyMismatch, match="make the tables for this model"):
        Policy.uniform(other, window=3, heavy=2, stride=1, prefix=5).replace(tables=policy.tables)
    with pytest.raises(PolicyMismatch, match="needs a table"):
        save_policy(policy.replace(tables=None), "nowhere.safetensors")


def test_a_size_holds_the_tables_and_a_share_does_not() -> None:
    policy, spec = scored(), CacheSpec(SHAPE, 5)
    cache = spec.bytes_of(policy)
    assert cache == spec.bytes_of(policy.replace(tables=None))
    assert check_fits_limit(policy, Limit(cache, spec, 0.5), "it") == cache
    assert check_fits_limit(policy, Limit(cache + BYTES, spec), "it") == cache + BYTES
    with pytest.raises(BudgetError, match=f"it: takes {cache + BYTES:,} bytes"):
        check_fits_limit(policy, Limit(cache + BYTES - 1, spec), "it")


def test_diff_and_merge_know_kinds_and_tables() -> None:
    plain, policy = scored((), kind=0), scored()
    assert [(change.layer, change.heads, change.fields) for change in diff(plain, policy).layers] == [
        (0, (1,), ("score",)),
        (1, (0, 2), ("score",)),
    ]
    assert diff(policy, scored(kind=1)).layers[1].fields == ("score",)
    other = policy.replace(tables=tables(seed=1))
    assert sum(len(change.heads) for change in diff(policy, other).layers) == 3
    taken = merge(plain, [Edit("edit 1", (1,), source=other), Edit("edit 2", (0,), (3,), {"score": "value"})])
    assert [taken.score_of(0, 3), taken.score_of(1, 2), taken.score_of(0, 1)] == ["value", "expected", "received"]
    assert taken.tables is not None
    assert taken.tables.heads.tolist() == [4, 6]
    assert taken.tables.digest() == tables(seed=1).of([4, 6]).digest()
    both = merge(policy, [Edit("edit 1", (1,), source=other.replace(tables=tables(rank=3)))])
    assert both.tables is not None
    assert torch.equal(both.tables.of([1]).weights(2), tables().of([1]).weights(2))
    assert torch.equal(both.tables.of([4]).weights(2), tables(rank=3).of([4]).weights(2))
    with pytest.raises(PolicyMismatch, match="edit 1: layer 0 head 0: score expected needs a table"):
        merge(plain, [Edit("edit 1", (0,), (0,), {"score": "expected"})])
    with pytest.raises(PolicyMismatch, match='edit 1: score "nobodys" is not known here'):
        merge(plain, [Edit("edit 1", (0,), (0,), {"score": "nobodys"})])


def test_a_place_in_another_list_is_the_same_kind() -> None:
    policy = scored(kind=1)
    moved = policy.replace(scores=("value", "received"), score=1 - policy.score)
    assert moved.same_as(policy)
    assert not diff(policy, moved).layers


@pytest.mark.parametrize(
    ("name", "says"), [("value", "taken are received"), ("no name", "expected a name of its own"), (3, "3")]
)
def test_a_kind_needs_a_name_of_its_own(name: object, says: str) -> None:
    with pytest.raises(HeadscopeError, match=says):
        register_score(name, lambda seen: seen.received)  # type: ignore[arg-type]
    with pytest.raises(HeadscopeError, match="worth is 5, expected a function"):
        register_score("mine", 5)  # type: ignore[arg-type]
    assert list(SCORES) == ["received", "value", "expected"]
