"""decode.csv: one row a variant and batch, of all batches that a folder's results hold."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from headscope.benchmarks.gpu import records
from headscope.benchmarks.gpu.records import Record
from headscope.benchmarks.shapes import SIZES
from headscope.policy import CACHE_DTYPES
from headscope.storage import write_csv

DECODE = "decode.csv"
COLUMNS = ["shape", "dtype", "device", "batch", "variant", "decoder", "batches", "tokens_s", "ms_step", "tokens_s_first",
           "ms_step_first", "ms_step_predicted", "share", "cache_bytes", "peak_bytes", "tokens", "note"]  # fmt: skip


def write_decode(folder: Path) -> Path:
    """Write decode.csv from results.jsonl."""
    import pandas as pd

    table = pd.DataFrame(decode_rows(records.read(folder)), columns=COLUMNS)
    return write_csv(table, folder / DECODE, float_format="%.5g")


def decode_rows(found: list[Record]) -> list[dict[str, Any]]:
    """Rows of COLUMNS, in the order in which they were measured first.

    `tokens_s` and `ms_step` are the median of the later batches, which find a captured graph; where there is none, of the first
    ones, which pay for it.

    Args:
        found: all records of a folder.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for one in found:
        if one["what"] == "batch of images":
            groups.setdefault(tuple(one[name] for name in ("shape", "dtype", "device", "batch", "variant")), []).append(one)
    return [_row(group) for group in groups.values()]


def _row(group: list[Record]) -> dict[str, Any]:
    firsts, later = ([one for one in group if bool(one["first"]) is first] for first in (True, False))
    ms, first_ms = (median(one["ms_step"] for one in part) if part else None for part in (later or firsts, firsts))
    one, batch = group[-1], group[-1]["batch"]
    peaks = [each["peak_bytes"] for each in group if each["peak_bytes"]]
    return {
        **{name: one[name] for name in ("shape", "dtype", "device", "batch", "variant", "decoder", "cache_bytes")},
        "share": _share(one),
        "batches": len(group),
        "ms_step": ms,
        "tokens_s": None if ms is None else 1e3 * batch / ms,
        "ms_step_first": first_ms,
        "tokens_s_first": None if first_ms is None else 1e3 * batch / first_ms,
        "ms_step_predicted": None if one["predicted"] is None else 1e3 * one["predicted"] / one["tokens"],
        "peak_bytes": max(peaks, default=None),
        "tokens": one["tokens"],
        "note": one.get("note", ""),
    }


def _share(one: Record) -> float:
    """Of the bytes of a plain cache of whole images; transformers' own keep everything."""
    size = SIZES[one["shape"]]
    numbers = 2 * size.layers * size.kv_heads * size.head_dim * (size.prefix + size.side**2)
    whole = 2 * one["batch"] * numbers * CACHE_DTYPES[one["dtype"]]
    return 1.0 if one["decoder"].startswith("transformers") else one["cache_bytes"] / whole


def main_figures(found: list[Record]) -> list[str]:
    """Sentences of what a run found: the card, how many tokens are equal, how much is the runtime's and how much the cache's.

    Args:
        found: all records of a folder.
    """
    said = [f"{one['what']}: {one['value'] / 1e9:,.0f} G{one['unit']}" for one in found if one["what"] in _OF_CARD]
    equal = [one["value"] for one in found if one["what"] == "tokens equal to the CPU's"]
    if equal:
        said.append(f"tokens equal to the CPU's: {min(equal):.1%} or more in {len(equal)} batches")
    speeds = {(one["shape"], one["batch"], one["variant"]): one["tokens_s"] for one in decode_rows(found)}
    for (shape, batch, name), speed in speeds.items():
        full = speeds.get((shape, batch, "full"))
        if name == "20" and full:
            said.append(f"{shape}, batch {batch}: a fifth of the cache {speed / full:.2f} times the full one (the cache)")
        if name.startswith("generate") and full:
            said.append(f"{shape}, batch {batch}: our full cache {full / speed:.2f} times {name} (the runtime)")
    return list(dict.fromkeys([*(f"fault: {one['value']}" for one in found if one["what"] == "fault"), *said]))


_OF_CARD = ("bandwidth of copying", "bandwidth of reading", "matrix product")
