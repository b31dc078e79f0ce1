"""HeadKV's scores: read in the order of the file, by query head, and dealt under a limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headscope.errors import BudgetError, DataError, HeadscopeError, PolicyMismatch
from headscope.policy import CacheSpec, Limit, Policy, import_policy
from tests.policy.shapes import SHAPE

LIMIT = Limit.parse("50%", CacheSpec(SHAPE, 5))


def scored(folder: Path, scores: object) -> Path:
    file = folder / "heads.json"
    file.write_text(json.dumps(scores) + "\n", encoding="utf-8")
    return file


def by_head() -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    return {f"{layer}-{head}": rng.uniform(0, 1, 3).tolist() for layer in range(3) for head in range(8)}


def read(file: Path) -> Policy:
    return import_policy(file, "headkv", SHAPE, limit=LIMIT)


def test_sizes_go_by_the_mean_score_of_a_group(tmp_path: Path) -> None:
    scores = by_head()
    policy = read(scored(tmp_path, scores))
    assert LIMIT.spec.bytes_of(policy) <= LIMIT.bytes
    # As its reader: means in the order of the file, as shares of their sum, and a floor of a sixth of the tokens.
    query = np.array([np.mean(value) for value in scores.values()]).reshape(3, 8)
    shares = np.stack([query[:, 2 * kv : 2 * kv + 2].mean(1) for kv in range(4)], 1)
    size = 1 - 1 / 1.2 + (shares / shares.sum()) * 12 / 1.2
    kept = (policy.window + policy.heavy).numpy()
    scale = (kept / size).max()
    assert (np.abs(kept - scale * size) <= 2.5).all()  # window and heavy are each rounded down
    assert (policy.window - policy.heavy).abs().max() <= 1
    np.testing.assert_allclose(policy.semantic_score, shares / shares.max(), rtol=1e-6)
    assert policy.provenance == {"method": "headkv", "keys_out_of_place": 0}


def test_the_order_counts_and_not_the_keys(tmp_path: Path) -> None:
    scores = by_head()
    policy = read(scored(tmp_path, scores))
    swapped = dict(zip(reversed(scores), scores.values(), strict=True))
    other = read(scored(tmp_path, swapped))
    assert other.same_as(policy)
    assert other.provenance["keys_out_of_place"] == 24
    assert not read(scored(tmp_path, dict(reversed(scores.items())))).same_as(policy)


def test_scores_that_are_all_zero_give_all_heads_the_same(tmp_path: Path) -> None:
    policy = read(scored(tmp_path, {key: [0] for key in by_head()}))
    assert torch.equal(policy.window, policy.window[:1, :1].expand(3, 4))


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    scores = by_head()
    with pytest.raises(PolicyMismatch, match="has scores of 24 heads, toy has 4 layers of 8 query heads"):
        import_policy(scored(tmp_path, scores), shape=replace(SHAPE, layers=4), limit=_limit(replace(SHAPE, layers=4)))
    few = dict(list(scores.items())[:12])
    with pytest.raises(PolicyMismatch, match="12 heads, one for each KV head; it takes query heads"):
        read(scored(tmp_path, few))
    with pytest.raises(HeadscopeError, match="holds scores and no sizes; give a limit"):
        import_policy(scored(tmp_path, scores), shape=SHAPE, prefix=5)
    with pytest.raises(HeadscopeError, match="name the one that it is for"):
        import_policy(scored(tmp_path, scores), limit=LIMIT)
    with pytest.raises(BudgetError, match="too few"):
        import_policy(scored(tmp_path, scores), shape=SHAPE, limit=replace(LIMIT, bytes=LIMIT.spec.smallest_bytes))


def _limit(shape: object) -> Limit:
    return Limit.parse("50%", CacheSpec(shape, 5))


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([1], r"holds \[1\], expected lists of scores by layer-head"),
        ({}, r"holds \{\}"),
        ({"a": [1]}, "expected lists of scores by layer-head"),
        ({"0-0": 1}, "0-0 is 1, expected a list of scores"),
        ({"0-0": []}, r"0-0 is \[\]"),
        ({"0-0": ["x"]}, '0-0 holds "x", expected a score'),
        ({"0-0": [float("nan")]}, "0-0 holds NaN"),
    ],
)
def test_what_is_no_score_is_named(tmp_path: Path, scores: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(scored(tmp_path, scores))


def test_its_reader_takes_one_line_and_so_does_this(tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    file.write_text(json.dumps(by_head(), indent=1), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1 is not JSON .*expected one line"):
        read(file)
    file.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        read(file)
