"""HeadKV (2410.19258, github.com/FYYFU/HeadKV): one line of JSON with lists of scores by query head. Only read.

Its reader takes the mean of each list, in the order in which they stand in the file, as [layers, query heads], and looks at no
key; so does this one. A KV head gets the mean of the query heads of its group. Heads then get sizes by its rule: a floor that
is the same for all, and a pool that is dealt by score.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from headscope.errors import BudgetError, DataError, HeadscopeError, PolicyMismatch
from headscope.facts import shown
from headscope.policy.exchange.record import Wanted
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.preset import part_of_row
from headscope.policy.project import fit
from headscope.policy.shape import ModelShape
from headscope.storage import parse_line, read_lines

KEY = re.compile(r"[0-9]+-[0-9]+")
# Share of the tokens that is dealt by score; its scripts try 1 / 1.005 to 1 / 10.
POOL = 1 / 1.2


def read(path: Path, wanted: Wanted) -> Policy:
    """Scores of HeadKV as a policy under a limit: half of each head's tokens are recent, half are chosen once a row.

    Args:
        path: of the file.
        wanted: the model, and the limit.

    Raises:
        DataError: missing, or no scores of HeadKV.
        PolicyMismatch: another number of heads than the model's.
        HeadscopeError: the model or the limit was not given.
        BudgetError: nothing fits the limit.
    """
    if wanted.shape is None:
        raise HeadscopeError(f"{path}: names no model that headscope knows; name the one that it is for.")
    if wanted.limit is None:
        raise HeadscopeError(f"{path}: holds scores and no sizes; give a limit, such as 20% of the plain cache.")
    found = scores_in(path)
    shape = wanted.shape
    if len(found) != shape.layers * shape.query_heads:
        hint = ", one for each KV head; it takes query heads" if len(found) == shape.layers * shape.kv_heads else ""
        raise PolicyMismatch(
            f"{path}: has scores of {len(found)} heads{hint}, {shape.name} has {shape.layers} layers of {shape.query_heads} "
            "query heads; name the model that it was made for."
        )
    return _policy(_by_kv_head(found, shape), wanted.limit, {"method": "headkv", "keys_out_of_place": _misplaced(found, shape)})


def is_scores(value: Any) -> bool:
    """Whether a JSON value has the keys of HeadKV's scores and no other."""
    return isinstance(value, dict) and bool(value) and all(KEY.fullmatch(key) for key in value)


def scores_in(path: Path) -> dict[str, float]:
    """Mean score by key, in the order of the file.

    Args:
        path: of the file, of which the first line counts.

    Raises:
        DataError: missing, or no scores of HeadKV.
    """
    lines = read_lines(path, "file of HeadKV's scores")
    if not lines:
        raise DataError(f"{path}: is empty, expected one line of JSON with lists of scores by layer-head.")
    value = parse_line(lines[0], "one line with lists of scores by layer-head")
    if not is_scores(value):
        raise DataError(f"{path}: holds {shown(value)}, expected lists of scores by layer-head, such as 0-0.")
    return {key: _mean(path, key, scores) for key, scores in value.items()}


def _mean(path: Path, key: str, scores: Any) -> float:
    if not isinstance(scores, list) or not scores:
        raise DataError(f"{path}: {key} is {shown(scores)}, expected a list of scores.")
    for score in scores:
        if type(score) not in (int, float) or not 0 <= score <= 1e30:
            raise DataError(f"{path}: {key} holds {shown(score)}, expected a score from 0 on.")
    return sum(scores) / len(scores)


def _by_kv_head(found: dict[str, float], shape: ModelShape) -> torch.Tensor:
    """float64 [layers, kv_heads]: the mean over the query heads of a group."""
    scores = torch.tensor(list(found.values()), dtype=torch.float64)
    return scores.view(shape.layers, shape.kv_heads, shape.query_heads // shape.kv_heads).mean(-1)


def _misplaced(found: dict[str, float], shape: ModelShape) -> int:
    """Keys that name another head than their place in the file."""
    places = (divmod(place, shape.query_heads) for place in range(len(found)))
    return sum(key != f"{layer}-{head}" for key, (layer, head) in zip(found, places, strict=True))


def _policy(scores: torch.Tensor, limit: Limit, provenance: dict[str, Any]) -> Policy:
    """The largest policy whose sizes go by HeadKV's rule, relative to their mean: 1 - POOL, and POOL by score."""
    size = 1 - POOL + POOL * scores / scores.mean() if bool(scores.any()) else torch.ones_like(scores)
    row = limit.spec.shape.geometry.stride_row
    shares = (scores / scores.max().clamp(min=1e-300)).float()
    for stride in dict.fromkeys((row, part_of_row(row, 4), 1)):
        try:
            policy = fit(size / 2, size / 2, limit, stride=stride, decay=0.0, semantic_score=shares)
        except BudgetError:
            if stride == 1:
                raise
        else:
            break
    return policy.replace(provenance=provenance)
