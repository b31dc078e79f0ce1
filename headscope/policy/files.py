"""The policy file: one safetensors file that executes nothing and is checked entirely before it is believed.

Tensors [layers, kv_heads] as in `Policy`; metadata, all JSON strings: headscope_schema, model, stride, prefix, accounting,
provenance, results. A reader of schema n refuses a file of a later schema and ignores metadata it does not know, such as the
`format` that other tools write.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.facts import OBJECT, TEXT, check, one_of, optional, or_null, parsed, record, whole
from headscope.geometry import MOST_TOKENS, Geometry
from headscope.policy.footprint import CACHE_DTYPES, plain_bytes, policy_bytes
from headscope.policy.policy import HEAD_TENSORS, ModelShape, Policy, check_tensor
from headscope.policy.shipped import policy_file, shipped
from headscope.reading import open_tensors
from headscope.storage import write_whole

SCHEMA = 1
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
    "weights": TEXT,
}
_LIMIT = {
    "bytes": whole(0, 2**63 - 1),
    "batch": whole(1),
    "streams": whole(1),
    "dtype": replace(one_of(*CACHE_DTYPES), accepts=lambda v: isinstance(v, str) and v.removeprefix("torch.") in CACHE_DTYPES),
    "of": one_of("all", "image"),
}
_FIELDS = {
    "model": record(_MODEL),
    "stride": whole(1, MOST_TOKENS),
    "prefix": whole(0, MOST_TOKENS),
    "accounting": optional(OBJECT),
    "provenance": optional(record({"limit": or_null(record(_LIMIT))})),
    "results": optional(OBJECT),
}
_DTYPES = {"I32": torch.int32, "F32": torch.float32, "U8": torch.uint8}


def save_policy(policy: Policy, path: str | Path, overwrite: bool = True) -> Path:
    """Write `policy` to `path`, whole or not at all.

    Raises:
        DataError: the place cannot be written, or holds a file and `overwrite` is False.
        PolicyMismatch: its provenance or results are no JSON values, or such that `load_policy` would refuse them.
    """
    path = Path(path)
    if os.path.exists(path) and not overwrite:
        raise DataError(f"{path}: exists already; choose another name.")
    shape = policy.shape
    metadata = {
        "model": shape.to_dict(),
        "stride": policy.stride,
        "prefix": policy.prefix,
        "provenance": dict(policy.provenance),
        "results": dict(policy.results),
    }
    try:
        metadata = json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
        raise PolicyMismatch(f"{path}: provenance and results have to be JSON values ({error}).") from None
    check(metadata, _FIELDS, str(path), PolicyMismatch)
    metadata |= {"headscope_schema": SCHEMA, "accounting": accounting(policy)}
    tensors = {name: getattr(policy, name).contiguous() for name in HEAD_TENSORS}
    strings = {name: json.dumps(value) for name, value in metadata.items()}
    return write_whole(path, lambda target: save_file(tensors, target, metadata=strings))


def accounting(policy: Policy) -> dict[str, Any]:
    """Bytes of the policy and of the plain cache, on the terms of its limit (one guided float32 picture without one)."""
    limit = policy.provenance.get("limit") or {}
    terms: dict[str, Any] = {
        "batch": int(limit.get("batch", 1)),
        "streams": int(limit.get("streams", 2)),
        "dtype": str(limit.get("dtype", "float32")),
        "of": str(limit.get("of", "all")),
    }
    kept, plain = policy_bytes(policy, **terms), plain_bytes(policy.shape, prefix=policy.prefix, **terms)
    return {"bytes": kept, "plain_bytes": plain, "kept_ratio": kept / plain, **terms}


def load_policy(path: str | Path, shape: ModelShape | None = None, accept_other_weights: bool = False) -> Policy:
    """Read a policy file, or a shipped policy by its name, and check that it fits `shape` (no check without one).

    Raises:
        DataError: missing, not readable, or not a policy file.
        PolicyMismatch: a fact or a tensor that is missing or impossible, a later schema, another architecture, or other
            weights of the same architecture unless `accept_other_weights`, which is then recorded in the provenance.
    """
    path = policy_file(path)
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder; name the policy file in it, such as {path / 'policy.safetensors'}.")
    known = ", ".join(shipped()) or "there is none"
    missing = (
        "policy file; make one with `headscope search` or `headscope run`, or name one that comes with headscope: " + known
    )
    with open_tensors(path, missing, "a policy file") as file:
        metadata = _metadata(path, file.metadata() or {})
        try:
            made = _shape(metadata["model"])
            policy = Policy(
                **{name: _tensor(file, name, made) for name in HEAD_TENSORS},
                stride=metadata["stride"],
                prefix=metadata["prefix"],
                shape=made,
                provenance=metadata.get("provenance", {}),
                results=metadata.get("results", {}),
            )
        except HeadscopeError as error:
            raise PolicyMismatch(f"{path}: {error}") from None
    return policy if shape is None else _fitted(policy, shape, path, accept_other_weights)


def _metadata(path: Path, strings: dict[str, str]) -> dict[str, Any]:
    """The known metadata, each of the right type and range."""
    if "headscope_schema" not in strings:
        raise DataError(f"{path}: a safetensors file, but not a policy of headscope.")
    schema = parsed(strings["headscope_schema"], f"{path}: headscope_schema")
    check({"headscope_schema": schema}, {"headscope_schema": whole(1)}, str(path), PolicyMismatch)
    if schema > SCHEMA:  # nothing else of it is known
        raise PolicyMismatch(f"{path}: written in schema {schema}, this headscope reads up to {SCHEMA}; install a newer one.")
    facts = {name: parsed(strings[name], f"{path}: {name}") for name in _FIELDS if name in strings}
    return check(facts, _FIELDS, str(path), PolicyMismatch)


def _shape(model: dict[str, Any]) -> ModelShape:
    if model["query_heads"] % model["kv_heads"]:
        raise PolicyMismatch(
            f"model.query_heads is {model['query_heads']}, expected a multiple of model.kv_heads, {model['kv_heads']}."
        )
    facts = {name: model[name] for name in _MODEL if name != "geometry"}
    return ModelShape(**facts, geometry=Geometry.from_dict(model["geometry"]))


def _tensor(file: safe_open, name: str, shape: ModelShape) -> torch.Tensor:
    """One tensor, which is read only after the header says that it is of the right size."""
    if name not in file.keys():  # noqa: SIM118 - it is no dictionary
        raise PolicyMismatch(f"lacks the tensor {name}, expected {(shape.layers, shape.kv_heads)} (layers, KV heads).")
    header = file.get_slice(name)
    dtype = _DTYPES.get(header.get_dtype(), header.get_dtype())
    check_tensor(name, tuple(header.get_shape()), dtype, shape)
    return file.get_tensor(name)


def _fitted(policy: Policy, shape: ModelShape, path: Path, accept_other_weights: bool) -> Policy:
    made = policy.shape
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
    for name in ("query_heads", "head_dim"):  # equal where the fingerprint is honest
        if getattr(made, name) != getattr(shape, name):
            raise PolicyMismatch(
                f"{path}: made for {getattr(made, name)} {name.replace('_', ' ')}, {shape.name} has {getattr(shape, name)}: "
                "search one for it."
            )
    if made.weights == shape.weights:
        return policy
    if not accept_other_weights:
        raise PolicyMismatch(
            f"{path}: made for other weights of this architecture ({made.name}, {made.weights[:12]}) than {shape.name} "
            f"({shape.weights[:12]}): search again, or use it as it is with --accept-other-weights."
        )
    noted = {**policy.provenance, "accepted_other_weights": {"made_for": made.weights, "used_on": shape.weights}}
    return policy.replace(shape=shape, provenance=noted)
