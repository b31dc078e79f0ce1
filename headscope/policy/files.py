"""The policy file: one safetensors file that executes nothing and is checked entirely before it is believed.

Tensors [layers, kv_heads]: those of `Policy`. A policy with fewer bits than 16 needs the feature `bits`, one with a head that
keeps less than the whole prompt the feature `prompt`, one that begins rows before the one above is done the feature `lead`, one
that chooses heavy tokens by other than attention received the feature `score`: only then there is a tensor `score`, and with
kinds that need tables `score.*` (score_table.py). Metadata, all JSON strings:

    headscope_schema  2; a reader refuses a later one
    needs             names of features without which the file is not understood; a reader refuses those it does not know
    model             shape and fingerprints; weights null: made for any weights of this shape
    stride, prefix    as in `Policy`
    lead              columns between rows that are generated at once; a row's whole length: one after the other
    score             how heavy tokens are chosen: received; or kinds in a list, of which the tensor `score` names places
    limit             bytes, share, and what they are counted for; or null
    accounting        the policy's bytes and the plain cache's, counted for the same
    provenance, results
    rule              what transfer to other models needs, with tensors `rule.*` (rule.py); may be left out

Metadata of other names is ignored, such as the `format` that other tools write. Schema 1 had no needs, bits, prompt, lead and
score, and its limit in the provenance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from headscope.errors import DataError, PolicyMismatch
from headscope.facts import parsed
from headscope.policy.metadata import PolicyFile, check_facts, check_schema, metadata_of, read_facts
from headscope.policy.rule import read_rule
from headscope.policy.score_table import PARTS, PREFIX, ScoreTable, check_headers, table_of
from headscope.policy.shape import ModelShape
from headscope.policy.shipped import shipped
from headscope.policy.tensors import check_tensor, is_written
from headscope.reading import open_tensors
from headscope.storage import write_whole

_DTYPES = {"I32": torch.int32, "F32": torch.float32, "U8": torch.uint8}


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
    metadata = metadata_of(file, path, accounting)
    tensors = {name: tensor.contiguous() for name, tensor in file.tensors.items() if is_written(name, tensor)}
    tensors |= {} if file.rule is None else file.rule.tensors()
    tensors |= {} if file.tables is None else file.tables.tensors()
    strings = {name: json.dumps(value) for name, value in metadata.items()}
    return write_whole(path, lambda target: save_file(tensors, target, metadata=strings))


def stored_facts(path: Path) -> dict[str, Any]:
    """What a policy file says beside its tensors, each value of the right type and range; see `Policy.load`."""
    with _opened(path) as file:
        return check_facts(_facts(file, path), path)


def read_file(path: Path) -> PolicyFile:
    """Read a policy file; see `Policy.load`."""
    with _opened(path) as file:
        facts = _facts(file, path)
        return read_facts(
            facts,
            lambda name, made: _tensor(file, name, made),
            lambda said, made: read_rule(file, said, made),
            lambda made: _tables(file, made),
            path,
        )


def _opened(path: Path) -> safe_open:
    if os.path.isdir(path):
        raise DataError(f"{path}: is a folder; name the policy file in it, such as {path / 'policy.safetensors'}.")
    known = ", ".join(shipped()) or "there is none"
    missing = (
        "policy file; make one with `headscope search` or `headscope run`, or name one that comes with headscope: " + known
    )
    return open_tensors(path, missing, "a policy file")


def _facts(file: safe_open, path: Path) -> dict[str, Any]:
    """The metadata of a file whose schema is known, as JSON values by name."""
    strings = file.metadata() or {}
    if "headscope_schema" not in strings:
        raise DataError(f"{path}: a safetensors file, but not a policy of headscope.")
    facts = {"headscope_schema": parsed(strings["headscope_schema"], f"{path}: headscope_schema")}
    names = check_schema(facts, path)
    return facts | {name: parsed(strings[name], f"{path}: {name}") for name in names if name in strings}


def _tensor(file: safe_open, name: str, shape: ModelShape) -> torch.Tensor:
    """One tensor, which is read only after the header says that it is of the right size."""
    if name not in file.keys():  # noqa: SIM118 - it is no dictionary
        raise PolicyMismatch(f"lacks the tensor {name}, expected {(shape.layers, shape.kv_heads)} (layers, KV heads).")
    header = file.get_slice(name)
    dtype = _DTYPES.get(header.get_dtype(), header.get_dtype())
    check_tensor(name, tuple(header.get_shape()), dtype, shape)
    return file.get_tensor(name)


def _tables(file: safe_open, shape: ModelShape) -> ScoreTable | None:
    """Tables of scores, read only after the header says that they are of the right size; None where there are none."""
    names = [f"{PREFIX}{name}" for name in PARTS]
    if not set(names) & set(file.keys()):
        return None
    headers = {}
    for name in names:
        if name not in file.keys():  # noqa: SIM118 - it is no dictionary
            raise PolicyMismatch(f"lacks the tensor {name}, which tables of scores have; write the file anew.")
        header = file.get_slice(name)
        headers[name] = (header.get_dtype(), tuple(header.get_shape()))
    check_headers(headers, shape)
    return table_of({name: file.get_tensor(name) for name in names})


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
