"""The policy file: one safetensors file that executes nothing and is checked entirely before it is believed.

Tensors [layers, kv_heads]: those of `Policy`, and `prompt`, of which this version knows one value: 1, the whole prompt is kept.
A policy with fewer bits than 16 needs the feature `bits`. Metadata, all JSON strings:

    headscope_schema  2; a reader refuses a later one
    needs             names of features without which the file is not understood; a reader refuses those it does not know
    model             shape and fingerprints; weights null: made for any weights of this shape
    stride, prefix    as in `Policy`
    lead              columns between rows that are generated at once; a row's whole length: one after the other
    score             how heavy tokens are chosen: received
    limit             bytes, share, and what they are counted for; or null
    accounting        the policy's bytes and the plain cache's, counted for the same
    provenance, results

Metadata of other names is ignored, such as the `format` that other tools write. Schema 1 had no needs, bits, prompt, lead and
score, and its limit in the provenance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.facts import FLAG, NUMBER, OBJECT, TEXT, TEXTS, check, one_of, optional, or_null, parsed, record, shown, whole
from headscope.geometry import MOST_TOKENS, Geometry
from headscope.policy.footprint import CACHE_DTYPES, CacheSpec, Limit
from headscope.policy.shape import ModelShape
from headscope.policy.shipped import shipped
from headscope.policy.tensors import DTYPES, HEAD_TENSORS, check_tensor
from headscope.reading import open_tensors
from headscope.storage import write_whole

SCHEMA = 2
# Features that a file may need.
KNOWN_NEEDS = frozenset({"bits"})
SCORE = "received"
# The tensor of which this version knows one value.
FIXED = {"prompt": 1}
# Far above every model there is, and low enough that the bytes of a head fit 64 bits.
_MOST_HEADS = 2**12
_MOST_SIZE = 2**16
_MODEL = {
    "name": TEXT,
    "layers": whole(1, _MOST_HEADS),
    "query_heads": whole(1, _MOST_HEADS),
    "kv_heads": whole(1, _MOST_HEADS),
    "head_dim": whole(1, _MOST_SIZE),
    "geometry": OBJECT,  # `Geometry.from_dict` knows its fields
    "architecture": TEXT,
    "weights": or_null(TEXT),
    "folds_prefix": optional(FLAG),
}
DTYPE = replace(one_of(*CACHE_DTYPES), accepts=lambda v: isinstance(v, str) and v.removeprefix("torch.") in CACHE_DTYPES)
_COUNTED = {"bytes": whole(0, 2**63 - 1), "batch": whole(1), "streams": whole(1), "dtype": DTYPE}
_LIMIT = {**_COUNTED, "share": or_null(NUMBER), "prefix": whole(0, MOST_TOKENS), "count_prefix": FLAG}
_COMMON = {
    "model": record(_MODEL),
    "stride": whole(1, MOST_TOKENS),
    "prefix": whole(0, MOST_TOKENS),
    "accounting": optional(OBJECT),
    "results": optional(OBJECT),
}
# By schema.
_FIELDS = {
    1: {**_COMMON, "provenance": optional(record({"limit": or_null(record({**_COUNTED, "of": one_of("all", "image")}))}))},
    2: {
        **_COMMON,
        "needs": TEXTS,
        "lead": whole(1, MOST_TOKENS),
        "score": one_of(SCORE),
        "limit": or_null(record(_LIMIT)),
        "provenance": optional(OBJECT),
    },
}
_DTYPES = {"I32": torch.int32, "F32": torch.float32, "U8": torch.uint8}


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
    """

    tensors: Mapping[str, torch.Tensor]
    stride: int
    prefix: int
    shape: ModelShape
    limit: Limit | None
    provenance: Mapping[str, Any]
    results: Mapping[str, Any]


def write_file(file: PolicyFile, path: str | Path, accounting: Mapping[str, Any], *, overwrite: bool = True) -> Path:
    """Write a policy file, whole or not at all; see `Policy.save`.

    Args:
        file: its content.
        path: of it.
        accounting: bytes, for readers.
        overwrite: replace a file that stands there.
    """
    path = Path(path)
    if os.path.exists(path) and not overwrite:
        raise DataError(f"{path}: exists already; choose another name.")
    shape = file.shape
    metadata = {
        "needs": ["bits"] if bool((file.tensors["bits"] != 16).any()) else [],
        "model": {**shape.to_dict(), "weights": shape.weights or None},
        "stride": file.stride,
        "prefix": file.prefix,
        "lead": shape.geometry.row_length,
        "score": SCORE,
        "limit": None if file.limit is None else file.limit.to_dict(),
        "provenance": dict(file.provenance),
        "results": dict(file.results),
    }
    try:
        metadata = json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
        raise PolicyMismatch(f"{path}: provenance and results have to be JSON values ({error}).") from None
    check(metadata, _FIELDS[SCHEMA], str(path), PolicyMismatch)
    metadata |= {"headscope_schema": SCHEMA, "accounting": dict(accounting)}
    tensors = {name: tensor.contiguous() for name, tensor in file.tensors.items()}
    tensors |= {name: torch.full(tensors["window"].shape, value, dtype=DTYPES[name]) for name, value in FIXED.items()}
    strings = {name: json.dumps(value) for name, value in metadata.items()}
    return write_whole(path, lambda target: save_file(tensors, target, metadata=strings))


def read_facts(path: Path) -> dict[str, Any]:
    """The metadata of a policy file that this headscope knows, each value of the right type and range; see `Policy.load`."""
    with _opened(path) as file:
        return _metadata(path, file.metadata() or {})


def _opened(path: Path) -> safe_open:
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder; name the policy file in it, such as {path / 'policy.safetensors'}.")
    known = ", ".join(shipped()) or "there is none"
    missing = (
        "policy file; make one with `headscope search` or `headscope run`, or name one that comes with headscope: " + known
    )
    return open_tensors(path, missing, "a policy file")


def read_file(path: Path) -> PolicyFile:
    """Read a policy file; see `Policy.load`."""
    with _opened(path) as file:
        metadata = _metadata(path, file.metadata() or {})
        try:
            made = _shape(metadata["model"])
            names = HEAD_TENSORS if metadata["headscope_schema"] > 1 else [name for name in HEAD_TENSORS if name != "bits"]
            found = PolicyFile(
                {name: _tensor(file, name, made) for name in names},
                metadata["stride"],
                metadata["prefix"],
                made,
                _limit(metadata, made),
                {name: value for name, value in metadata.get("provenance", {}).items() if name != "limit"},
                metadata.get("results", {}),
            )
            if metadata["headscope_schema"] > 1:
                _check_fixed(file, metadata, made)
        except HeadscopeError as error:
            raise PolicyMismatch(f"{path}: {error}") from None
    return found


def _metadata(path: Path, strings: dict[str, str]) -> dict[str, Any]:
    """The known metadata, each of the right type and range."""
    if "headscope_schema" not in strings:
        raise DataError(f"{path}: a safetensors file, but not a policy of headscope.")
    schema = parsed(strings["headscope_schema"], f"{path}: headscope_schema")
    check({"headscope_schema": schema}, {"headscope_schema": whole(1)}, str(path), PolicyMismatch)
    if schema > SCHEMA:  # nothing else of it is known
        raise PolicyMismatch(f"{path}: written in schema {schema}, this headscope reads up to {SCHEMA}; install a newer one.")
    fields = _FIELDS[schema]
    facts = {name: parsed(strings[name], f"{path}: {name}") for name in fields if name in strings}
    unknown = sorted(set(check(facts, {"needs": optional(TEXTS)}, str(path), PolicyMismatch).get("needs", ())) - KNOWN_NEEDS)
    if unknown:  # before anything else of it, which they may change the meaning of
        raise PolicyMismatch(f"{path}: needs {shown(unknown)}, which this headscope does not know; install a newer one.")
    return {**check(facts, fields, str(path), PolicyMismatch), "headscope_schema": schema}


def _limit(metadata: dict[str, Any], shape: ModelShape) -> Limit | None:
    """The limit, of either schema."""
    if metadata["headscope_schema"] > 1:
        return None if metadata.get("limit") is None else Limit.from_dict(metadata["limit"], shape)
    old = metadata.get("provenance", {}).get("limit")
    if old is None:
        return None
    counted = {"batch": old["batch"], "streams": old["streams"], "dtype": old["dtype"], "count_prefix": old["of"] == "all"}
    return Limit(old["bytes"], CacheSpec(shape, metadata["prefix"], **counted))


def _check_fixed(file: safe_open, metadata: dict[str, Any], shape: ModelShape) -> None:
    """Refuse values of a later version: prompts of heads, rows at once."""
    for name, value in FIXED.items():
        wrong = (_tensor(file, name, shape) != value).nonzero()
        if len(wrong):
            layer, head = wrong[0].tolist()
            raise PolicyMismatch(f"layer {layer} head {head}: {name} is not {value}, which is all that this headscope knows.")
    few = (_tensor(file, "bits", shape) != 16).nonzero()
    if len(few) and "bits" not in metadata["needs"]:
        layer, head = few[0].tolist()
        raise PolicyMismatch(f"layer {layer} head {head}: bits are below 16, which needs does not name; write the file anew.")
    if metadata["lead"] != shape.geometry.row_length:
        raise PolicyMismatch(
            f"lead is {metadata['lead']}, expected {shape.geometry.row_length}, which generates row after row."
        )


def _shape(model: dict[str, Any]) -> ModelShape:
    if model["query_heads"] % model["kv_heads"]:
        raise PolicyMismatch(
            f"model.query_heads is {model['query_heads']}, expected a multiple of model.kv_heads, {model['kv_heads']}."
        )
    facts = {name: model[name] for name in _MODEL if name in model and name not in ("geometry", "weights")}
    return ModelShape(**facts, weights=model.get("weights") or "", geometry=Geometry.from_dict(model["geometry"]))


def _tensor(file: safe_open, name: str, shape: ModelShape) -> torch.Tensor:
    """One tensor, which is read only after the header says that it is of the right size."""
    if name not in file.keys():  # noqa: SIM118 - it is no dictionary
        raise PolicyMismatch(f"lacks the tensor {name}, expected {(shape.layers, shape.kv_heads)} (layers, KV heads).")
    header = file.get_slice(name)
    dtype = _DTYPES.get(header.get_dtype(), header.get_dtype())
    check_tensor(name, tuple(header.get_shape()), dtype, shape)
    return file.get_tensor(name)


def check_fits(made: ModelShape, shape: ModelShape, path: Path) -> None:
    """Refuse a policy of another architecture.

    Args:
        made: what the policy was made for.
        shape: what it is to be used on.
        path: its file, for messages.

    Raises:
        PolicyMismatch: see above.
    """
    if (made.layers, made.kv_heads) != (shape.layers, shape.kv_heads) or made.geometry != shape.geometry:
        raise PolicyMismatch(
            f"{path}: made for {made.name} ({made.layers} layers, {made.kv_heads} KV heads, {made.geometry} tokens), but "
            f"{shape.name} has {shape.layers} layers, {shape.kv_heads} KV heads, {shape.geometry} tokens: search one for it."
        )
    if made.architecture != shape.architecture:
        raise PolicyMismatch(
            f"{path}: made for another architecture ({made.name}, {made.architecture[:12]}) than {shape.name} "
            f"({shape.architecture[:12]}): search one for it."
        )
    if made.folds_prefix != shape.folds_prefix:
        wanted, found = ("one entry" if one.folds_prefix else "every token" for one in (made, shape))
        raise PolicyMismatch(
            f"{path}: its bytes count {wanted} of the prefix, {shape.name} was loaded to keep {found}: load it with the other "
            "setting of fold_prefix, or search again."
        )
    for name in ("query_heads", "head_dim"):  # equal where the fingerprint is honest
        if getattr(made, name) != getattr(shape, name):
            raise PolicyMismatch(
                f"{path}: made for {getattr(made, name)} {name.replace('_', ' ')}, {shape.name} has {getattr(shape, name)}: "
                "search one for it."
            )
