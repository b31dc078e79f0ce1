"""Bytes and tokens: what a policy takes, what a limit allows, and projecting any proposal onto a limit.

Everything allocated counts: keys and values of every slot, and for heads with heavy tokens a float32 score and an int32
position of every image slot behind the anchors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headscope.errors import BudgetError
from headscope.policy.policy import ModelShape, Policy

SCORE_BYTES = 8  # float32 score and int32 position
# Bytes of one number, by the dtypes a cache is kept in.
CACHE_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def itemsize(dtype: str | torch.dtype) -> int:
    """Bytes of one number.

    Raises:
        BudgetError: a dtype that no cache is kept in.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in CACHE_DTYPES:
        raise BudgetError(f"dtype {name}: unknown; a cache is kept in {', '.join(CACHE_DTYPES)}.")
    return CACHE_DTYPES[name]


def head_bytes(
    window: Any,
    heavy: Any,
    anchor: Any,
    stride: int,
    *,
    shape: ModelShape,
    prefix: int,
    dtype: str | torch.dtype,
    of: str = "all",
) -> np.ndarray:
    """Bytes of one head of one sequence, for numbers or arrays of any common shape -> int64 of that shape.

    Example: head size 24, float32, prefix 10, window 16, no heavy tokens: (10 + 16 + 1) * 2 * 24 * 4 = 5,184.
    """
    window, heavy, anchor = (np.asarray(value, dtype=np.int64) for value in (window, heavy, anchor))
    buffer = min(stride, shape.geometry.tokens)
    slots = _counted_prefix(prefix, of) + anchor + window + heavy + np.where(heavy > 0, buffer, 1)
    scores = np.where(heavy > 0, (window + heavy + buffer) * SCORE_BYTES, 0)
    return slots * 2 * shape.head_dim * itemsize(dtype) + scores


def policy_bytes(
    policy: Policy,
    *,
    batch: int = 1,
    streams: int = 2,
    dtype: str | torch.dtype = "float32",
    prefix: int | None = None,
    of: str = "all",
) -> int:
    """Bytes that the runtime allocates for `batch` pictures of `streams` streams (of "image": without the prefix)."""
    nbytes = head_bytes(
        policy.window.numpy(),
        policy.heavy.numpy(),
        policy.anchor.numpy(),
        policy.stride,
        shape=policy.shape,
        prefix=policy.prefix if prefix is None else prefix,
        dtype=dtype,
        of=of,
    )
    return int(nbytes.sum()) * batch * streams


def plain_bytes(
    shape: ModelShape,
    *,
    prefix: int,
    batch: int = 1,
    streams: int = 2,
    dtype: str | torch.dtype = "float32",
    of: str = "all",
) -> int:
    """Bytes of a plain K/V cache of prefix + N tokens (of "image": N tokens)."""
    tokens = _counted_prefix(prefix, of) + shape.geometry.tokens
    return batch * streams * shape.layers * shape.kv_heads * tokens * 2 * shape.head_dim * itemsize(dtype)


def kept_ratio(
    policy: Policy, of: str = "all", dtype: str | torch.dtype = "float32", batch: int = 1, streams: int = 2
) -> float:
    """Allocated bytes over the plain cache's."""
    terms: dict[str, Any] = {"batch": batch, "streams": streams, "dtype": dtype, "of": of}
    return policy_bytes(policy, **terms) / plain_bytes(policy.shape, prefix=policy.prefix, **terms)


def smallest_possible(
    shape: ModelShape, *, prefix: int, batch: int, streams: int, dtype: str | torch.dtype, of: str = "all"
) -> int:
    """Bytes when every head sees only the prefix and itself."""
    one = head_bytes(0, 0, 0, 1, shape=shape, prefix=prefix, dtype=dtype, of=of)
    return int(one) * shape.layers * shape.kv_heads * batch * streams


@dataclass(frozen=True)
class Limit:
    """A byte limit and what it is for.

    Attributes:
        bytes: allocated for `batch` pictures of `streams` streams in `dtype`.
        of: "all", or "image" where the prefix counts on neither side. kept: the share asked for, if it was one.
    """

    bytes: int
    batch: int
    streams: int
    dtype: str
    of: str
    kept: float | None = None

    @property
    def per_sequence(self) -> float:
        """Bytes for one row of the batch."""
        return self.bytes / (self.batch * self.streams)

    @classmethod
    def from_keep(
        cls,
        shape: ModelShape,
        keep: str | float,
        *,
        prefix: int,
        batch: int = 1,
        streams: int = 2,
        dtype: str = "float32",
        of: str = "all",
    ) -> Limit:
        """A share of the plain cache: "20%", "0.2" or 0.2.

        Raises:
            BudgetError: not a share, above 100 %, or below the smallest possible.
        """
        share = parse_keep(keep)
        terms: dict[str, Any] = {"prefix": prefix, "batch": batch, "streams": streams, "dtype": dtype, "of": of}
        full = plain_bytes(shape, **terms)
        limit = cls(int(share * full + 1e-6), batch, streams, dtype, of, share)
        smallest = smallest_possible(shape, **terms)
        if limit.bytes < smallest:
            raise BudgetError(
                f"--keep {keep}: too small for {shape.name}; with prompts of {prefix} tokens the smallest possible is "
                f"{_percent(smallest, full)} ({smallest:,} bytes)."
            )
        return limit

    @classmethod
    def from_memory(
        cls,
        memory: str | int,
        *,
        shape: ModelShape,
        prefix: int,
        batch: int = 1,
        streams: int = 2,
        dtype: str = "float32",
        of: str = "all",
    ) -> Limit:
        """A size: "12MiB", "300MB", bytes.

        Raises:
            BudgetError: not a size, above the full cache, or below the smallest possible.
        """
        terms: dict[str, Any] = {"prefix": prefix, "batch": batch, "streams": streams, "dtype": dtype, "of": of}
        limit = cls(parse_size(memory), batch, streams, dtype, of)
        smallest, full = smallest_possible(shape, **terms), plain_bytes(shape, **terms)
        if limit.bytes < smallest:
            raise BudgetError(
                f"--memory {memory}: too small for {batch} pictures of {shape.name}; the smallest possible is {smallest:,} "
                f"bytes ({_percent(smallest, full)} of the full cache)."
            )
        if limit.bytes > full:
            raise BudgetError(
                f"--memory {memory}: more than the full cache of {batch} pictures of {shape.name}, which takes {full:,} bytes; "
                "no policy is needed."
            )
        return limit


def parse_keep(keep: str | float) -> float:
    """Read a share: "20%", "0.2" or 0.2 -> 0.2.

    Raises:
        BudgetError: not a share in (0, 1].
    """
    text = str(keep).strip()
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BudgetError(f"--keep {keep}: expected a share such as 20% or 0.2.") from None
    if not 0 < share <= 1:
        raise BudgetError(f"--keep {keep}: expected more than 0% and at most 100% of the plain cache.")
    return share


def parse_size(size: str | int) -> int:
    """Read a size: "12MiB", "300MB", "1.5GiB", "4096" or 4096 -> bytes.

    Raises:
        BudgetError: not a size.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", str(size).strip())
    try:
        if found is None:
            raise ValueError
        nbytes = int(float(found[1]) * _UNITS[found[2].upper()])
    except (ValueError, KeyError):
        raise BudgetError(f"--memory {size}: expected a size such as 12MiB, 300MB or 1.5GiB.") from None
    return nbytes


def project(
    weights_window: torch.Tensor,
    weights_heavy: torch.Tensor,
    limit: Limit,
    shape: ModelShape,
    *,
    stride: int,
    anchor: int = 0,
    prefix: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale a proposal to the largest one that fits: window and heavy int32 [layers, kv_heads].

    All weights grow together, and each head's numbers are rounded down on the way; heads of a layer with equal weights
    stay equal, so no bucket is added. Where the next token of several groups comes at the same moment, the groups take
    it in the order of layers. The way is the same for every limit, so a larger one never gives a head fewer tokens, and what
    stays unused is less than the next group's step. A head with a heavy weight keeps at least one heavy token.

    Weights that are numbers of tokens already, fit, and leave less than the largest group's step unused are the answer, so
    projecting a projection changes nothing.

    Raises:
        BudgetError: even the start of the way does not fit.
    """
    ww = weights_window.double().clamp(min=0).numpy()
    wh = weights_heavy.double().clamp(min=0).numpy()
    most = shape.geometry.tokens - 1
    full = most / np.maximum(ww + wh, 1e-12)

    def at(scale: float) -> tuple[np.ndarray, np.ndarray]:
        heavy = np.where(wh > 0, np.maximum(np.floor(np.minimum(scale, full) * wh + 1e-9), 1), 0).astype(np.int64)
        window = np.floor(np.minimum(scale, full) * ww + 1e-9).astype(np.int64)
        window = np.where((scale >= full) & (ww > 0), np.maximum(window, most - heavy), window)
        return window, heavy

    def cost(window: np.ndarray, heavy: np.ndarray) -> int:
        anchors = np.where(window + heavy >= most, 0, anchor)
        sizes = head_bytes(window, heavy, anchors, stride, shape=shape, prefix=prefix, dtype=limit.dtype, of=limit.of)
        return int(sizes.sum())

    room = limit.per_sequence
    if _whole(ww, wh, most) and 0 <= room - cost(*at(1.0)) < _largest_step(ww, wh, stride, shape, limit.dtype):
        return _tensors(*at(1.0))
    if cost(*at(0.0)) > room:
        raise BudgetError(
            f"{limit.bytes:,} bytes are too few for stride {stride} and {anchor} anchors: the smallest policy of this kind "
            f"takes {cost(*at(0.0)) * limit.batch * limit.streams:,}."
        )
    high = float(full[(ww + wh) > 0].max(initial=0.0)) + 1.0
    if cost(*at(high)) <= room:
        return _tensors(*at(high))
    low = 0.0
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if cost(*at(middle)) <= room else (low, middle)
    window, heavy = at(low)
    after_window, after_heavy = at(high)
    for layer in range(shape.layers):
        moved = (window[layer] != after_window[layer]) | (heavy[layer] != after_heavy[layer])
        groups = dict.fromkeys((ww[layer, h], wh[layer, h]) for h in np.flatnonzero(moved))
        for weights in groups:
            heads = (ww[layer] == weights[0]) & (wh[layer] == weights[1])
            tried_window, tried_heavy = window.copy(), heavy.copy()
            tried_window[layer, heads], tried_heavy[layer, heads] = after_window[layer, heads], after_heavy[layer, heads]
            if cost(tried_window, tried_heavy) > room:
                return _tensors(window, heavy)
            window, heavy = tried_window, tried_heavy
    return _tensors(window, heavy)


def _whole(window: np.ndarray, heavy: np.ndarray, most: int) -> bool:
    """Whether weights are numbers of tokens that a head can have."""
    return bool((window % 1 == 0).all() and (heavy % 1 == 0).all() and (window + heavy <= most).all())


def _largest_step(window: np.ndarray, heavy: np.ndarray, stride: int, shape: ModelShape, dtype: str | torch.dtype) -> int:
    """Most bytes by which a projection with these counts can fall short: a token more for every head of the largest group
    of equal heads in a layer, two where there are windows and heavy tokens."""
    sizes = []
    for layer in range(shape.layers):
        for w, h in set(zip(window[layer], heavy[layer], strict=True)):
            heads = int(((window[layer] == w) & (heavy[layer] == h)).sum())
            least, more = ((0, 1), (1, 2)) if h > 0 else ((0, 0), (1, 0))
            counts = np.array([least, more])
            size = head_bytes(counts[:, 0], counts[:, 1], 0, stride, shape=shape, prefix=0, dtype=dtype)
            sizes.append(heads * int(size[1] - size[0]))
    return max(sizes)


def _tensors(window: np.ndarray, heavy: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(window.astype(np.int32)), torch.from_numpy(heavy.astype(np.int32))


def _counted_prefix(prefix: int, of: str) -> int:
    if of not in ("all", "image"):
        raise BudgetError(f"--keep-of {of}: expected `all` or `image`.")
    return prefix if of == "all" else 0


def _percent(part: int, whole: int) -> str:
    return f"{np.ceil(1000 * part / whole) / 10:g}%"
