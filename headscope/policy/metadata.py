"""What a policy file says beside its tensors, whichever form it has, and what is refused of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headscope.errors import HeadscopeError, PolicyMismatch
from headscope.facts import FLAG, NUMBER, OBJECT, TEXTS, Kind, check, one_of, optional, or_null, record, shown, whole
from headscope.geometry import MOST_TOKENS
from headscope.policy.footprint import CACHE_DTYPES, CacheSpec, Limit
from headscope.policy.rule import KEY as RULE, Rule
from headscope.policy.score_table import ScoreTable
from headscope.policy.scores import BUILT_IN, RECEIVED
from headscope.policy.shape import MODEL, ModelShape
from headscope.policy.tensors import FEATURES, HEAD_TENSORS, LEAD, SCORE

SCHEMA = 2
# Features that a file may need.
KNOWN_NEEDS = frozenset(FEATURES) | {LEAD}
_SCORE = Kind(f"{RECEIVED}, or a list of kinds of scores", lambda v: v == RECEIVED or (TEXTS.accepts(v) and 0 < len(v) < 256))
DTYPE = replace(one_of(*CACHE_DTYPES), accepts=lambda v: isinstance(v, str) and v.removeprefix("torch.") in CACHE_DTYPES)
_COUNTED = {"bytes": whole(0, 2**63 - 1), "batch": whole(1), "streams": whole(1), "dtype": DTYPE}
_LIMIT = {**_COUNTED, "share": or_null(NUMBER), "prefix": whole(0, MOST_TOKENS), "count_prefix": FLAG}
_COMMON = {
    "model": record(MODEL),
    "stride": whole(1, MOST_TOKENS),
    "prefix": whole(0, MOST_TOKENS),
    "accounting": optional(OBJECT),
    "results": optional(OBJECT),
    RULE: optional(OBJECT),
}
# By schema.
_FIELDS = {
    1: {**_COMMON, "provenance": optional(record({"limit": or_null(record({**_COUNTED, "of": one_of("all", "image")}))}))},
    2: {
        **_COMMON,
        "needs": TEXTS,
        LEAD: whole(1, MOST_TOKENS),
        SCORE: _SCORE,
        "limit": or_null(record(_LIMIT)),
        "provenance": optional(OBJECT),
    },
}


@dataclass(frozen=True)
class PolicyFile:
    """What a policy file holds, each part of the right type and range; whether they make a policy is `Policy`'s to say.

    Attributes:
        tensors: [layers, kv_heads] each, by name.
        stride: tokens between two choices of the heavy set.
        prefix: tokens that the byte accounting assumes.
        shape: the model that it was made for; weights "" where it was made for any of this shape.
        limit: the byte limit, or None.
        provenance: JSON values.
        results: JSON values.
        rule: for transfer, or None.
        scores: kinds of scores, of which the tensor `score` names places.
        tables: of kinds that need them, or None.
        lead: columns between rows that are generated at once; None: row after row.
    """

    tensors: Mapping[str, torch.Tensor]
    stride: int
    prefix: int
    shape: ModelShape
    limit: Limit | None
    provenance: Mapping[str, Any]
    results: Mapping[str, Any]
    rule: Rule | None = None
    scores: tuple[str, ...] = BUILT_IN
    tables: ScoreTable | None = None
    lead: int | None = None


def metadata_of(file: PolicyFile, path: Path, accounting: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a policy file says beside its tensors, as JSON values by name.

    Args:
        file: its content.
        path: of it, for messages.
        accounting: bytes, for readers.

    Raises:
        PolicyMismatch: provenance or results are no JSON values, or such that a reader would refuse them.
    """
    shape = file.shape
    needs = [name for name, usual in FEATURES.items() if bool((file.tensors[name] != usual).any())]
    row = shape.geometry.row_length
    lead = row if file.lead is None else file.lead
    needs += [LEAD] * (lead != row)
    metadata = {
        "needs": needs,
        "model": {**shape.to_dict(), "weights": shape.weights or None},
        "stride": file.stride,
        "prefix": file.prefix,
        LEAD: lead,
        SCORE: list(file.scores) if SCORE in needs else RECEIVED,
        "limit": None if file.limit is None else file.limit.to_dict(),
        "provenance": dict(file.provenance),
        "results": dict(file.results),
    }
    try:
        metadata = json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
        raise PolicyMismatch(f"{path}: provenance and results have to be JSON values ({error}).") from None
    check(metadata, _FIELDS[SCHEMA], str(path), PolicyMismatch)
    metadata |= {} if file.rule is None else {RULE: file.rule.facts()}
    return {**metadata, "headscope_schema": SCHEMA, "accounting": dict(accounting)}


def check_schema(facts: Mapping[str, Any], path: Path) -> Sequence[str]:
    """The names of the facts that a policy file of its schema has.

    Args:
        facts: JSON values by name, of which headscope_schema is looked at.
        path: of the file, for messages.

    Raises:
        PolicyMismatch: no schema, or one that this version does not know.
    """
    schema = check(facts, {"headscope_schema": whole(1)}, str(path), PolicyMismatch)["headscope_schema"]
    if schema > SCHEMA:  # nothing else of it is known
        raise PolicyMismatch(f"{path}: written in schema {schema}, this headscope reads up to {SCHEMA}; install a newer one.")
    return tuple(_FIELDS[schema])


def read_facts(
    facts: Mapping[str, Any],
    tensor: Callable[[str, ModelShape], torch.Tensor],
    rule: Callable[[Mapping[str, Any] | None, ModelShape], Rule | None],
    tables: Callable[[ModelShape], ScoreTable | None],
    path: Path,
) -> PolicyFile:
    """What a policy file holds, from its facts and its tensors, all of it checked.

    Args:
        facts: JSON values by name.
        tensor: gives one [layers, kv_heads] of a model by its name.
        rule: gives the rule, if any, from what the facts say of it.
        tables: gives those of scores, if any; asked of files that need the feature `score`.
        path: of the file, for messages.

    Raises:
        PolicyMismatch: a fact or a tensor that is missing or impossible, or of a later version.
    """
    metadata = check_facts(facts, path)
    try:
        made = ModelShape.from_dict(metadata["model"])
        first = metadata["headscope_schema"] == 1
        names = [name for name in HEAD_TENSORS if name not in FEATURES or not first]
        scored = SCORE in metadata.get("needs", ())
        listed = scored and metadata[SCORE] != RECEIVED
        found = PolicyFile(
            {name: tensor(name, made) for name in names if name != SCORE or scored},
            metadata["stride"],
            metadata["prefix"],
            made,
            _limit(metadata, made),
            {name: value for name, value in metadata.get("provenance", {}).items() if name != "limit"},
            metadata.get("results", {}),
            rule(metadata.get(RULE), made),
            tuple(metadata[SCORE]) if listed else BUILT_IN,
            tables(made) if listed else None,
            metadata.get(LEAD),
        )
        if not first:
            _check_needed(found.tensors, metadata, made)
    except HeadscopeError as error:
        raise PolicyMismatch(f"{path}: {error}") from None
    return found


def check_facts(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The known facts, each of the right type and range.

    Args:
        facts: JSON values by name.
        path: of the file, for messages.

    Raises:
        PolicyMismatch: see `read_facts`.
    """
    fields = {name: _FIELDS[facts["headscope_schema"]][name] for name in check_schema(facts, path)}
    unknown = sorted(set(check(facts, {"needs": optional(TEXTS)}, str(path), PolicyMismatch).get("needs", ())) - KNOWN_NEEDS)
    if unknown:  # before anything else of it, which they may change the meaning of
        raise PolicyMismatch(f"{path}: needs {shown(unknown)}, which this headscope does not know; install a newer one.")
    return check(facts, fields, str(path), PolicyMismatch)


def _limit(metadata: dict[str, Any], shape: ModelShape) -> Limit | None:
    """The limit, of either schema."""
    if metadata["headscope_schema"] > 1:
        return None if metadata.get("limit") is None else Limit.from_dict(metadata["limit"], shape)
    old = metadata.get("provenance", {}).get("limit")
    if old is None:
        return None
    counted = {"batch": old["batch"], "streams": old["streams"], "dtype": old["dtype"], "count_prefix": old["of"] == "all"}
    return Limit(old["bytes"], CacheSpec(shape, metadata["prefix"], **counted))


def _check_needed(tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any], shape: ModelShape) -> None:
    """Refuse features that the file does not say it needs."""
    listed, needed = metadata[SCORE] != RECEIVED, SCORE in metadata["needs"]
    if listed != needed:
        names = "names" if needed else "does not name"
        raise PolicyMismatch(f"{SCORE} is {shown(metadata[SCORE])}, a feature that needs {names}; write the file anew.")
    for name in (name for name in FEATURES if name in tensors and name not in metadata["needs"]):
        other = (tensors[name] != FEATURES[name]).nonzero()
        if len(other):
            layer, head = other[0].tolist()
            raise PolicyMismatch(
                f"layer {layer} head {head}: {name} is {tensors[name][layer, head]}, a feature that needs does not name; write "
                "the file anew."
            )
    row = shape.geometry.row_length
    if metadata[LEAD] != row and LEAD not in metadata["needs"]:
        raise PolicyMismatch(
            f"{LEAD} is {metadata[LEAD]}, a feature that needs does not name; expected {row}, which generates row after row; "
            "write the file anew."
        )
