"""Writing a policy for another tool, and reading one of another tool's."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headscope.errors import DataError, HeadscopeError
from headscope.policy.exchange.formats import format_named, format_of
from headscope.policy.exchange.reckoning import length_of, one_image, plain_bytes
from headscope.policy.exchange.record import Content, Exported, Format, Wanted
from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.provenance import version_of
from headscope.storage import write_text

NOTES = "headscope.json"
# A list of numbers or of flags, as `json` breaks it into lines; in texts a line break is \\n.
_NUMBERS = re.compile(r"\[\n[-+.\w\s,]*\]")


def export_policy(policy: Policy, path: str | Path, to: str) -> Exported:
    """Write a policy in the format of another tool, with what it loses there.

    Args:
        policy: to write.
        path: of the file, or of the folder where the format is one; what stands there under the same names is replaced.
        to: one of FORMATS: json, duo_attention, kvpress, tensorrt_llm, vllm.

    Raises:
        HeadscopeError: an unknown format, or one that is only read.
        PolicyMismatch: the format can hold nothing of this policy, or its provenance is no JSON.
        DataError: the place cannot be written, or holds a folder where a file goes, or the other way round.
    """
    path, kind = Path(path), format_named(to, exports=True)
    assert kind.write is not None
    if kind.folder and os.path.exists(path) and not path.is_dir():
        raise DataError(f"{path}: is a file; {kind.name} is a folder: choose another name.")
    if not kind.folder and path.is_dir():
        raise DataError(f"{path}: is a folder; {kind.name} is one file: choose a name in it.")
    content = kind.write(policy, path)
    notes = _notes(policy, kind, content)
    if kind.folder:
        return Exported(path, _write_folder(path, {**content.files, NOTES: notes}) / NOTES, notes)
    if kind.notes_inside:
        write_text(path, _text({**content.files[""], "headscope": notes}, path))
        return Exported(path, path, notes)
    beside = path.with_name(f"{path.stem}.{NOTES}")
    if beside == path:
        raise DataError(f"{path}: what is lost goes into a file of that name; choose another.")
    write_text(path, _text(content.files[""], path))
    return Exported(path, write_text(beside, _text(notes, beside)), notes)


def import_policy(
    path: str | Path,
    source: str | None = None,
    shape: ModelShape | None = None,
    prefix: int | None = None,
    limit: Limit | None = None,
) -> Policy:
    """Read a policy in the format of another tool.

    Args:
        path: of the file or folder.
        source: one of FORMATS: json, duo_attention, headkv; None where the file itself says which.
        shape: the model that the policy is for; all but json need it.
        prefix: longest prompt in tokens, for duo_attention without a limit.
        limit: what has to hold the policy; headkv needs one, and duo_attention takes one in place of its sizes.

    Raises:
        DataError: missing, another kind of file, or one that does not say which format it is in.
        PolicyMismatch: layers, heads or numbers that do not fit.
        HeadscopeError: an unknown format, or something that it needs was not given.
        BudgetError: nothing fits the limit.
    """
    path = Path(path)
    kind = format_of(path) if source is None else format_named(source, exports=False)
    assert kind.read is not None
    if limit is not None and prefix not in (None, limit.spec.prefix):
        raise HeadscopeError(
            f"prefix {prefix}: the limit is counted for prompts of {limit.spec.prefix} tokens; give one of both."
        )
    if limit is not None and shape is not None and limit.spec.shape != shape:
        raise HeadscopeError(
            f"limit: counted for {limit.spec.shape.name}, the policy is for {shape.name}; give one of that model."
        )
    return kind.read(path, Wanted(shape, None if limit is not None else prefix, limit))


def _notes(policy: Policy, kind: Format, content: Content) -> dict[str, Any]:
    """What a reader of the export must know, as JSON values."""
    spec, shape = one_image(policy), policy.shape
    return {
        "written_by": f"headscope {version_of('headscope')}",
        "format": kind.name,
        "policy": policy.fingerprint(),
        "model": {**shape.to_dict(), "weights": shape.weights or None},
        "units": kind.units,
        # Of one stream: guidance caches as many tokens again.
        "length": {"tokens": length_of(policy), "prefix": policy.prefix, "image": shape.geometry.tokens},
        "prompt_counts": True,
        "tokens_are_of": "one stream",
        "bytes": {
            "at_most": content.nbytes,
            "here": spec.bytes_of(policy),
            "plain": plain_bytes(policy),
            "images": 1,
            "streams": spec.streams,
            "dtype": spec.dtype,
        },
        "lost": list(content.lost),
    }


def _text(value: Any, path: Path) -> str:
    """A text as it stands, other values as JSON, a list of numbers in one line."""
    if isinstance(value, str):
        return value
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise DataError(f"{path}: provenance or results hold a number that JSON has no word for (NaN, infinite).") from None
    return _NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


def _write_folder(path: Path, files: Mapping[str, Any]) -> Path:
    """Write a folder that is not there yet in one step, and files of one that is there one by one."""
    texts = {name: _text(value, path / name) for name, value in files.items()}
    if path.is_dir():
        for name, text in texts.items():
            write_text(path / name, text)
        return path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        for name, text in texts.items():
            write_text(temporary / name, text)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path
