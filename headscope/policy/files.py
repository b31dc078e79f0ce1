"""The policy file: one safetensors file that executes nothing and is checked entirely before it is believed.

Tensors [layers, kv_heads] as in `Policy`; metadata, all JSON strings: headscope_schema, model, stride, prefix, accounting,
provenance, results. A reader of schema n refuses a file of a later schema and ignores metadata it does not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from headscope.errors import DataError, HeadscopeError, PolicyMismatch
from headscope.geometry import Geometry
from headscope.policy.budget import plain_bytes, policy_bytes
from headscope.policy.policy import HEAD_TENSORS, ModelShape, Policy
from headscope.policy.shipped import policy_file, shipped
from headscope.storage import write_whole

SCHEMA = 1


def save_policy(policy: Policy, path: str | Path, overwrite: bool = True) -> Path:
    """Write `policy` to `path`, whole or not at all.

    Raises:
        DataError: the place cannot be written, or holds a file and `overwrite` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already; choose another name.")
    shape = policy.shape
    metadata = {
        "headscope_schema": SCHEMA,
        "model": shape.to_dict(),
        "stride": policy.stride,
        "prefix": policy.prefix,
        "accounting": accounting(policy),
        "provenance": dict(policy.provenance),
        "results": dict(policy.results),
    }
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
        DataError: missing, cut, or not a policy file.
        PolicyMismatch: a tensor that is missing or impossible, a later schema, another architecture, or other weights of the
            same architecture unless `accept_other_weights`, which is then recorded in the provenance.
    """
    path = policy_file(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the policy file in it, such as {path / 'policy.safetensors'}.")
    if not path.is_file():
        known = ", ".join(shipped())
        raise DataError(
            f"{path}: no such policy file; make one with `headscope search` or `headscope run`, or name one that comes with "
            f"headscope: {known or 'there is none'}."
        )
    try:
        with safe_open(path, framework="pt") as file:
            strings = file.metadata() or {}
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in HEAD_TENSORS if name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cut or damaged, not a readable safetensors file ({error}); copy or search it again."
        ) from None
    if "headscope_schema" not in strings:
        raise DataError(f"{path}: a safetensors file, but not a policy of headscope.")
    metadata = _parsed(path, strings)
    if int(metadata["headscope_schema"]) > SCHEMA:
        raise PolicyMismatch(
            f"{path}: written in schema {metadata['headscope_schema']}, this headscope reads up to {SCHEMA}; "
            "install a newer one."
        )
    if missing := [name for name in HEAD_TENSORS if name not in tensors]:
        raise PolicyMismatch(f"{path}: lacks the tensor {missing[0]}; the file is damaged, search or copy it again.")
    try:
        policy = Policy(
            **tensors,
            stride=int(metadata["stride"]),
            prefix=int(metadata["prefix"]),
            shape=_shape(metadata["model"]),
            provenance=metadata.get("provenance", {}),
            results=metadata.get("results", {}),
        )
    except HeadscopeError as error:
        raise PolicyMismatch(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyMismatch(f"{path}: its metadata lacks or garbles {error}; the file is damaged.") from None
    return policy if shape is None else _fitted(policy, shape, path, accept_other_weights)


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
    if made.weights == shape.weights:
        return policy
    if not accept_other_weights:
        raise PolicyMismatch(
            f"{path}: made for other weights of this architecture ({made.name}, {made.weights[:12]}) than {shape.name} "
            f"({shape.weights[:12]}): search again, or use it as it is with --accept-other-weights."
        )
    noted = {**policy.provenance, "accepted_other_weights": {"made_for": made.weights, "used_on": shape.weights}}
    return policy.replace(shape=shape, provenance=noted)


def _parsed(path: Path, strings: dict[str, str]) -> dict[str, Any]:
    try:
        return {name: json.loads(value) for name, value in strings.items()}
    except ValueError as error:
        raise DataError(f"{path}: its metadata is not JSON ({error}); the file is damaged.") from None


def _shape(model: dict[str, Any]) -> ModelShape:
    counts = {name: int(model[name]) for name in ("layers", "query_heads", "kv_heads", "head_dim")}
    return ModelShape(
        name=str(model["name"]),
        **counts,
        geometry=Geometry.from_dict(model["geometry"]),
        architecture=str(model["architecture"]),
        weights=str(model["weights"]),
    )
