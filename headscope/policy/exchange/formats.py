"""The formats that policies can be handed over in, and which of them a file is in."""

from __future__ import annotations

from pathlib import Path

from headscope.errors import DataError, HeadscopeError
from headscope.policy.exchange import duo_attention, headkv, kvpress, plain_json, tensorrt_llm, vllm
from headscope.policy.exchange.record import Format
from headscope.storage import parse_line, read_json, read_lines

_ALL = (
    Format(
        "json",
        "headscope's own, complete",
        "KV heads, a list a layer; tokens; window leaves the query out, the prompt is counted by prefix",
        notes_inside=True,
        write=plain_json.write,
        read=plain_json.read,
    ),
    Format(
        "duo_attention",
        "DuoAttention's folder: a score a head and two sizes",
        "KV heads, a line a layer; tokens; sink_size counts the prompt, recent_size leaves the query out",
        folder=True,
        write=duo_attention.write,
        read=duo_attention.read,
    ),
    Format(
        "kvpress",
        "settings of two presses of kvpress",
        "KV heads, a list a layer; tokens, sink_size counts the prompt, recent_size leaves the query out; compression_ratios "
        "are fractions removed of `length` tokens, the prompt among them",
        notes_inside=True,
        write=kvpress.write,
    ),
    Format(
        "tensorrt_llm",
        "kv_cache_config of TensorRT-LLM",
        "layers; tokens; max_attention_window counts the query and the sinks, sink_token_length the prompt",
        write=tensorrt_llm.write,
    ),
    Format(
        "vllm",
        "quantised layers of vLLM's cache",
        "layers; numbers of 8 bits, in listed layers of the model's dtype",
        write=vllm.write,
    ),
    Format("headkv", "HeadKV's scores", "query heads, layer-head; scores", read=headkv.read),
)
FORMATS = {each.name: each for each in _ALL}


def format_named(name: str, exports: bool) -> Format:
    """The format of that name; `-` may stand for `_`.

    Args:
        name: one of FORMATS.
        exports: it has to write; otherwise to read.

    Raises:
        HeadscopeError: unknown, or it only goes the other way.
    """
    can = [each.name for each in _ALL if (each.write if exports else each.read) is not None]
    key = name.lower().replace("-", "_")
    if key not in FORMATS:
        raise HeadscopeError(f"format {name}: unknown; expected {' or '.join([', '.join(can[:-1]), can[-1]])}.")
    if key not in can:
        way = "only read, not written" if exports else "only written, not read"
        raise HeadscopeError(f"format {name}: is {way}; expected {' or '.join([', '.join(can[:-1]), can[-1]])}.")
    return FORMATS[key]


def format_of(path: Path) -> Format:
    """The format that a file or folder says it is in.

    Args:
        path: of it.

    Raises:
        DataError: nothing is there that can be read, or it says nothing; names the formats that it may be in.
    """
    if path.is_dir():
        if (path / duo_attention.SCORES).is_file():
            return FORMATS["duo_attention"]
        raise DataError(f"{path}: a folder without {duo_attention.SCORES}; only duo_attention is a folder.")
    if path.name == duo_attention.SCORES:
        raise DataError(f"{path}: a file of DuoAttention; name its folder, which holds {duo_attention.CONFIG} too.")
    value = _value(path)
    if isinstance(value, dict) and plain_json.MARK in value:
        return FORMATS["json"]
    if headkv.is_scores(value):
        return FORMATS["headkv"]
    if isinstance(value, dict) and "DuoAttentionPress" in value:
        raise DataError(f"{path}: settings of kvpress, which are only written; import the policy that they were made of.")
    raise DataError(f"{path}: does not say which format it is in; it may be json or headkv: say which.")


def _value(path: Path) -> object:
    """The JSON value of a file, or of its first line."""
    try:
        return read_json(path)
    except DataError:
        lines = read_lines(path, "file of a policy")
        if not lines:
            raise DataError(f"{path}: is empty, expected a policy in one of the formats that are read.") from None
        try:
            return parse_line(lines[0], "a policy")
        except DataError:
            return None
