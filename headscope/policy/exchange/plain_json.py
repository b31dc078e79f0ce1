"""Headscope's own JSON: everything that a policy file says, for readers that have no safetensors.

docs/exchange.md lists its fields. Numbers of 32 bits are written with as many digits as it takes to read them back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.facts import OBJECT, check, shown, whole
from headscope.policy.exchange.reckoning import one_image
from headscope.policy.exchange.record import Content, Wanted
from headscope.policy.files import check_fits
from headscope.policy.metadata import check_schema, metadata_of, read_facts
from headscope.policy.policy import Policy
from headscope.policy.rule import KEY as RULE, OPTIONS, TENSORS, Rule, made_of, names_of
from headscope.policy.score_table import DTYPES as TABLE_DTYPES, PARTS, PREFIX, ScoreTable, table_of
from headscope.policy.shape import ModelShape
from headscope.policy.tensors import DTYPES, is_written
from headscope.storage import read_json

MARK, VERSION, HEADS = "headscope_policy_json", 1, "heads"


def write(policy: Policy, path: Path) -> Content:
    """A policy as JSON, with nothing lost.

    Args:
        policy: to write.
        path: of the file, for messages.

    Raises:
        PolicyMismatch: its provenance or results are no JSON values.
    """
    policy.check_tables()
    file = policy.as_file()
    metadata = metadata_of(file, path, policy.accounting())
    values = {name: tensor.tolist() for name, tensor in file.tensors.items() if is_written(name, tensor)}
    if policy.tables is not None:
        values |= {name: tensor.tolist() for name, tensor in policy.tables.tensors().items()}
    if policy.rule is not None:
        metadata[RULE] |= {"tensors": {name: tensor.tolist() for name, tensor in policy.rule.tensors().items()}}
    return Content({"": {MARK: VERSION, **metadata, HEADS: values}}, one_image(policy).bytes_of(policy), ())


def read(path: Path, wanted: Wanted) -> Policy:
    """The policy that a JSON file holds.

    Args:
        path: of the file.
        wanted: the model that it has to fit, or None for any; it brings prompt length and limit itself.

    Raises:
        DataError: missing, or no JSON of a policy.
        PolicyMismatch: a fact or a number that is missing or impossible, a later version, or another model.
        HeadscopeError: another prompt length or limit was asked for.
    """
    facts = read_json(path)
    if not isinstance(facts, dict) or MARK not in facts:
        raise DataError(f"{path}: no policy in headscope's JSON, which has a field {MARK}.")
    if wanted.prefix is not None or wanted.limit is not None:
        raise HeadscopeError(f"{path}: holds the longest prompt and the limit itself; leave both out.")
    version = check(facts, {MARK: whole(1)}, str(path), PolicyMismatch)[MARK]
    if version > VERSION:
        raise PolicyMismatch(f"{path}: version {version}, this headscope reads up to {VERSION}; install a newer one.")
    names = {*check_schema(facts, path), "headscope_schema"}
    values = check(facts, {HEADS: OBJECT}, str(path), PolicyMismatch)[HEADS]
    known = {name: value for name, value in facts.items() if name in names}
    found = dict(
        vars(read_facts(known, lambda name, shape: _tensor(values, name, shape), _rule, lambda _: _tables(values), path))
    )
    try:
        policy = Policy(**found.pop("tensors"), **found)
        policy.check_tables()
    except HeadscopeError as error:
        raise PolicyMismatch(f"{path}: {error}") from None
    if wanted.shape is not None:
        check_fits(policy.shape, wanted.shape, path)
    return policy


def _rule(facts: Mapping[str, Any] | None, _: ModelShape) -> Rule | None:
    """What transfer needs, out of lists; `Rule` checks their sizes."""
    if facts is None or names_of(facts) is None:
        return None
    lists = check(facts, {"tensors": OBJECT}, RULE, PolicyMismatch)["tensors"]
    found = {}
    for name in TENSORS:
        depth = 2 if name == OPTIONS else 3
        try:
            found[name] = torch.tensor(lists[name], dtype=torch.float32)
            if found[name].dim() != depth:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
            wanted = f"lists of numbers, {depth} deep"
            raise PolicyMismatch(f"rule.tensors: {name} is {shown(lists.get(name))}, expected {wanted}.") from None
    return made_of(facts, found)


def _tables(values: Mapping[str, Any]) -> ScoreTable | None:
    """Tables of scores, out of lists; `ScoreTable` checks their sizes."""
    names = {f"{PREFIX}{name}": TABLE_DTYPES[code] for name, (code, _) in PARTS.items()}
    if not set(names) & set(values):
        return None
    found = {}
    for name, dtype in names.items():
        lists, given = values.get(name), torch.empty(0)
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            given = torch.tensor(lists)
        found[name] = given.to(dtype)
        whole_numbers = dtype.is_floating_point or not given.is_floating_point()
        if not given.numel() or not whole_numbers or given.dtype == torch.bool or not _kept(given, found[name]):
            raise PolicyMismatch(f"{HEADS}.{name} is {shown(lists)}, expected lists of numbers that {str(dtype)[6:]} holds.")
    return table_of(found)


def _kept(given: torch.Tensor, stored: torch.Tensor) -> bool:
    """Whether numbers lost nothing by their type; scales are rounded."""
    return bool(stored.isfinite().all()) if stored.is_floating_point() else bool((stored == given).all())


def _tensor(values: Mapping[str, Any], name: str, shape: ModelShape) -> torch.Tensor:
    """One tensor [layers, kv_heads] out of lists."""
    size = f"{shape.layers} lists (layers) of {shape.kv_heads} numbers (KV heads)"
    if name not in values:
        raise PolicyMismatch(f"lacks {HEADS}.{name}, expected {size}.")
    rows = values[name]
    if not isinstance(rows, list) or len(rows) != shape.layers:
        raise PolicyMismatch(f"{HEADS}.{name} is {shown(rows)}, expected {size}.")
    dtype = DTYPES[name]
    for layer, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != shape.kv_heads:
            raise PolicyMismatch(f"{HEADS}.{name} of layer {layer} is {shown(row)}, expected {shape.kv_heads} numbers.")
        for head, value in enumerate(row):
            if not _holds(value, dtype):
                kind = "a number" if dtype.is_floating_point else f"a whole number that {str(dtype)[6:]} holds"
                raise PolicyMismatch(f"layer {layer} head {head}: {name} is {shown(value)}, expected {kind}.")
    return torch.tensor(rows, dtype=dtype)


def _holds(value: Any, dtype: torch.dtype) -> bool:
    """Whether a JSON value is a number of that type."""
    if dtype.is_floating_point:
        return type(value) in (int, float) and abs(value) <= torch.finfo(dtype).max
    return type(value) is int and torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max
