"""Bytes: what a cache is counted for, what a policy takes of it, and what a limit allows.

Everything allocated counts: keys and values of every slot, and for heads with heavy tokens a float32 score and an int32
position of every image slot behind the anchors. Below 16 bits these slots hold packed numbers, with a float16 scale and zero a
group of them (KIVI, 2402.02750).

Long, because a spec and a limit are one reckoning, and each of its numbers is said at both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace as _replace
from typing import Any, Protocol

import numpy as np
import torch

from headscope.errors import BudgetError
from headscope.geometry import Geometry
from headscope.policy.lead import schedule
from headscope.policy.shape import ModelShape

SCORE_BYTES = 8  # float32 score and int32 position
CODE_GROUP = 32  # numbers of a head that share scale and zero at 4 bits; at 8 the whole head does
SCALE_BYTES = 4  # float16 scale and zero of a group
# Bytes of one number, by the dtypes a cache is kept in.
CACHE_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# What a share of the cache is counted in: a run in float32 on a laptop stands for the one in bfloat16 that it prepares.
SHARED_DTYPE = "bfloat16"
SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def dtype_name(dtype: object) -> str:
    """`torch.float32`, "float32" or "fp32" -> "float32".

    Raises:
        BudgetError: a dtype that no cache is kept in.
    """
    text = str(dtype).removeprefix("torch.")
    name = SHORT_DTYPES.get(text, text)
    if name not in CACHE_DTYPES:
        raise BudgetError(f"dtype {name}: unknown; a cache is kept in {', '.join(CACHE_DTYPES)}.")
    return name


def code_bytes(size: Any, bits: Any) -> Any:
    """Bytes of the packed numbers of a head of that size, below 16 bits."""
    return -(-size * bits // 8)


def code_groups(size: Any, bits: Any) -> Any:
    """Groups of numbers of a head that have a scale of their own: one at 8 bits, one for 32 numbers at 4."""
    return 1 + (bits == 4) * (-(-size // CODE_GROUP) - 1)


def image_slots(window: Any, heavy: Any, stride: int, geometry: Geometry, lead: int | None = None) -> np.ndarray:
    """Slots of image tokens behind the anchors, for numbers or arrays of any common shape -> int64 of that shape.

    Row after row: window + 1 without heavy tokens, else window + heavy + a buffer of one stride. Rows at once: in place of
    window + 1 the most that a step's queries see together, in place of the window the most that the next step's will, and in
    place of the stride the most that is fed between two choices (`Schedule`).

    Args:
        window: tokens before the query that are always kept.
        heavy: older tokens kept by score.
        stride: tokens between two choices of the heavy set.
        geometry: of the image.
        lead: columns between rows that are generated at once; None, or a row's length: row after row.
    """
    window, heavy = (np.asarray(value, dtype=np.int64) for value in (window, heavy))
    if lead is None or lead == geometry.row_length:
        return window + heavy + np.where(heavy > 0, min(stride, geometry.tokens), 1)
    plan, place = schedule(geometry, lead), window.clip(0, geometry.tokens - 1)
    chosen = plan.protected_slots[place] + heavy + plan.buffer(stride)
    return np.where(heavy > 0, chosen, plan.window_slots[place])


class Kept(Protocol):
    """What a `Policy` keeps, as far as bytes go: int32 [layers, kv_heads], and the stride."""

    @property
    def window(self) -> torch.Tensor:
        """Tokens before the query that are always kept."""
        ...

    @property
    def heavy(self) -> torch.Tensor:
        """Older tokens kept by score."""
        ...

    @property
    def anchor(self) -> torch.Tensor:
        """First image tokens that are always kept."""
        ...

    @property
    def bits(self) -> torch.Tensor:
        """Of a kept number: 16 (the model's dtype), 8 or 4; uint8."""
        ...

    @property
    def prompt(self) -> torch.Tensor:
        """1 where the whole prompt is kept, 0 where two tokens of it are; uint8."""
        ...

    @property
    def stride(self) -> int:
        """Tokens between two choices of the heavy ones."""
        ...

    @property
    def lead(self) -> int:
        """Columns between rows that are generated at once; a row's length: row after row."""
        ...

    @property
    def table_bytes(self) -> int:
        """Of the tables of scores, which all images share."""
        ...


class Running(Protocol):
    """What a cache is counted for by, of a model that is loaded."""

    shape: ModelShape
    guidance: float

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights, and so of its cache."""
        ...


@dataclass(frozen=True)
class CacheSpec:
    """What a cache is counted for.

    Attributes:
        shape: the model.
        prefix: tokens before the image, padding included.
        batch: images generated together.
        streams: rows of the batch that an image takes, two under guidance.
        dtype: of keys and values at 16 bits, by name.
        count_prefix: whether the prefix counts; LineAR (2512.04857) leaves it out on both sides.

    Raises:
        BudgetError: on construction, an unknown dtype or a number out of range.
    """

    shape: ModelShape
    prefix: int
    batch: int = 1
    streams: int = 2
    dtype: str = SHARED_DTYPE
    count_prefix: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        for name, least in (("prefix", 0), ("batch", 1), ("streams", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise BudgetError(f"{name} {value!r}: expected a whole number from {least}.")

    @classmethod
    def of(cls, model: Running, prefix: int, **more: Any) -> CacheSpec:
        """What a model that is loaded caches: in its dtype, and two streams where it is guided.

        Args:
            model: an `ImageModel`.
            prefix: tokens before the image.
            more: other fields, such as `batch=16`.
        """
        return cls(model.shape, prefix, **{"streams": 1 + (model.guidance != 1.0), "dtype": str(model.dtype), **more})

    @property
    def rows(self) -> int:
        """Sequences that are cached: images times streams."""
        return self.batch * self.streams

    @property
    def full_bytes(self) -> int:
        """Of a plain cache of prefix + N tokens, or 1 + N where the prefix is kept as one."""
        tokens = self._prefix() + self.shape.geometry.tokens
        return self.rows * self.shape.layers * self.shape.kv_heads * tokens * self._token_bytes

    @property
    def smallest_bytes(self) -> int:
        """When every head sees only two tokens of the prefix and itself, in the fewest bits."""
        return self.smallest_of((16, 8, 4))

    def smallest_of(self, bits: Sequence[int], whole_prompt: bool = False) -> int:
        """The same where heads may have these bits.

        Args:
            bits: of 16, 8 and 4.
            whole_prompt: every head sees all of the prefix.
        """
        head = min(int(self.head_bytes(0, 0, 0, 1, each, int(whole_prompt))) for each in bits)
        return head * self.shape.layers * self.shape.kv_heads * self.rows

    def bytes_of(self, policy: Kept) -> int:
        """Bytes that the runtime allocates under `policy`, for all rows.

        Args:
            policy: of this shape's layers and KV heads; the prefix counted is this spec's, whatever the policy assumes.
        """
        numbers = (policy.window.numpy(), policy.heavy.numpy(), policy.anchor.numpy())
        sizes = self.head_bytes(*numbers, policy.stride, policy.bits.numpy(), policy.prompt.numpy(), policy.lead)
        return int(sizes.sum()) * self.rows

    def share_of(self, policy: Kept) -> float:
        """Those bytes over the plain cache's.

        Args:
            policy: as in `bytes_of`.
        """
        return self.bytes_of(policy) / self.full_bytes

    def head_bytes(
        self, window: Any, heavy: Any, anchor: Any, stride: int, bits: Any = 16, prompt: Any = 1, lead: int | None = None
    ) -> np.ndarray:
        """Bytes of one head of one row, for numbers or arrays of any common shape -> int64 of that shape.

        Example: head size 24, float32, prefix 10, window 16, no heavy tokens: (10 + 16 + 1) * 2 * 24 * 4 = 5,184; at 8 bits
        10 * 192 + 17 * (2 * 24 + 8) = 2,872, and with prompt 0 besides 2 * 192 + 17 * 56 = 1,336.

        Args:
            window: tokens before the query that are always kept.
            heavy: older tokens kept by score.
            anchor: first image tokens that are always kept.
            stride: tokens between two choices of the heavy set.
            bits: of a number of an image token behind the anchors: 16 (the spec's dtype), 8 or 4.
            prompt: 1 where the whole prefix is kept, 0 where its first and its last token are.
            lead: columns between rows that are generated at once; None: row after row.
        """
        image = image_slots(window, heavy, stride, self.shape.geometry, lead)
        heavy, anchor, bits = (np.asarray(value, dtype=np.int64) for value in (heavy, anchor, bits))
        size = self.shape.head_dim
        packed = 2 * (code_bytes(size, bits) + SCALE_BYTES * code_groups(size, bits))
        of_image = np.where(bits == 16, self._token_bytes, packed) + np.where(heavy > 0, SCORE_BYTES, 0)
        prefix = np.where(np.asarray(prompt) == 0, self._prefix(whole=False), self._prefix())
        return (prefix + anchor) * self._token_bytes + image * of_image

    def in_two_bytes(self) -> CacheSpec:
        """The same with two bytes a number at 16 bits, as shares are counted in."""
        return self if CACHE_DTYPES[self.dtype] <= CACHE_DTYPES[SHARED_DTYPE] else self.replace(dtype=SHARED_DTYPE)

    def replace(self, **changes: Any) -> CacheSpec:
        """A copy with some fields changed.

        Args:
            changes: new values by attribute, such as `batch=4`.
        """
        return _replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON values by attribute, without the model."""
        return {name: value for name, value in vars(self).items() if name != "shape"}

    def words(self) -> str:
        """`4 x 2 streams in float32, the prefix left out`."""
        return f"{self.batch} x {self.streams} streams in {self.dtype}{'' if self.count_prefix else ', the prefix left out'}"

    def _prefix(self, whole: bool = True) -> int:
        return self.shape.prefix_slots(self.prefix, whole) if self.count_prefix else 0

    @property
    def _token_bytes(self) -> int:
        return 2 * self.shape.head_dim * CACHE_DTYPES[self.dtype]


@dataclass(frozen=True)
class Limit:
    """A byte limit and what it is for.

    Attributes:
        bytes: that may be allocated.
        spec: what they are counted for.
        share: of the plain cache, where a share was asked for.
    """

    bytes: int
    spec: CacheSpec
    share: float | None = None

    @property
    def per_row(self) -> float:
        """Bytes for one row of the batch."""
        return self.bytes / self.spec.rows

    def taken_by(self, policy: Kept, prefix: int) -> int:
        """Bytes of a policy that count against the limit: a size holds the tables of scores too, once; a share does not, as its
        plain cache, which all images share as little as the weights of the model, has none.

        Args:
            policy: of this shape's layers and KV heads.
            prefix: tokens of the prompt.
        """
        cache = self.spec.replace(prefix=prefix).bytes_of(policy)
        return cache + (policy.table_bytes if self.share is None else 0)

    @classmethod
    def parse(cls, text: str | float, spec: CacheSpec) -> Limit:
        """A share of the plain cache or a size.

        Args:
            text: a share ("20%", "0.2", 0.2) or a size ("12MiB", "300MB", 4096); a number up to 1 is a share, above it bytes.
            spec: what the bytes are counted for.

        Raises:
            BudgetError: neither, above the full cache, or below the smallest possible.
        """
        try:
            parse_share(text)
        except BudgetError:
            if str(text).strip().endswith("%"):
                raise
            return cls.of_memory(text, spec)
        return cls.of_share(text, spec)

    @classmethod
    def of_share(cls, keep: str | float, spec: CacheSpec) -> Limit:
        """A share of the plain cache, counted in two bytes a number on both sides (`CacheSpec.in_two_bytes`).

        Args:
            keep: above 0 and at most 1: "20%", "0.2" or 0.2.
            spec: what the bytes are counted for; its prefix, batch and streams make the plain cache.

        Raises:
            BudgetError: not a share, above 100 %, or below the smallest possible.
        """
        share, spec = parse_share(keep), spec.in_two_bytes()
        limit = cls(int(share * spec.full_bytes + 1e-6), spec, share)
        if limit.bytes < spec.smallest_bytes:
            raise BudgetError(
                f"keep {keep}: too small for {spec.shape.name}; with prompts of {spec.prefix} tokens the smallest possible is "
                f"{_percent(spec.smallest_bytes, spec.full_bytes)} ({spec.smallest_bytes:,} bytes)."
            )
        return limit

    @classmethod
    def of_memory(cls, memory: str | float, spec: CacheSpec) -> Limit:
        """A size in bytes.

        Args:
            memory: "12MiB", "300MB", "4096" or 4096, for all rows of the batch together.
            spec: what the bytes are counted for.

        Raises:
            BudgetError: not a size, above the full cache, or below the smallest possible.
        """
        limit = cls(parse_size(memory), spec)
        smallest, full, images = spec.smallest_bytes, spec.full_bytes, f"{spec.batch} images of {spec.shape.name}"
        if limit.bytes < smallest:
            raise BudgetError(
                f"memory {memory}: too small for {images}; the smallest possible is {smallest:,} bytes "
                f"({_percent(smallest, full)} of the full cache)."
            )
        if limit.bytes > full:
            raise BudgetError(
                f"memory {memory}: more than the full cache of {images}, which takes {full:,} bytes; no policy is needed."
            )
        return limit

    def for_model(self, shape: ModelShape) -> Limit:
        """The same bytes, counted for another model of the same layers and heads.

        Args:
            shape: of that model.
        """
        return _replace(self, spec=self.spec.replace(shape=shape))

    def at(self, share: float) -> Limit:
        """Another share, counted for the same; whether any policy fits it is not checked.

        Args:
            share: of the plain cache, in (0, 1].
        """
        return Limit(int(share * self.spec.full_bytes + 1e-6), self.spec, share)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: bytes, share, and the fields of the spec."""
        return {"bytes": self.bytes, "share": self.share, **self.spec.to_dict()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], shape: ModelShape) -> Limit:
        """What `to_dict` wrote.

        Args:
            facts: JSON values: bytes, share and the fields of the spec, as in a policy file or run.json.
            shape: the model that the limit is for, which `to_dict` leaves out.
        """
        names = ("prefix", "batch", "streams", "dtype", "count_prefix")
        return cls(int(facts["bytes"]), CacheSpec(shape, **{name: facts[name] for name in names}), facts.get("share"))


def parse_share(keep: str | float) -> float:
    """Read a share: "20%", "0.2" or 0.2 -> 0.2.

    Raises:
        BudgetError: not a share in (0, 1].
    """
    text = str(keep).strip()
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BudgetError(f"keep {keep}: expected a share such as 20% or 0.2.") from None
    if not 0 < share <= 1:
        raise BudgetError(f"keep {keep}: expected more than 0% and at most 100% of the plain cache.")
    return share


def parse_size(size: str | float) -> int:
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
        raise BudgetError(f"memory {size}: expected a size such as 12MiB, 300MB or 1.5GiB.") from None
    return nbytes


def _percent(part: int, whole: int) -> str:
    return f"{np.ceil(1000 * part / whole) / 10:g}%"
