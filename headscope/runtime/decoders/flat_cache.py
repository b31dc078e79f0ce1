"""A layer's compressed cache for a GPU: all heads in one flat tensor, and tables that say where every token goes.

Which slot a token takes and how many slots a head then sees follows from the policy alone, so both are tables over the tokens
of the image. Only who stays at a stride end is decided on the device (triton_kernels.py), without waiting for the host. What is
kept, and what is allocated, is the same as in buckets.py, which is the reference for the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headscope.policy import Policy


@dataclass(frozen=True)
class SlotTables:
    """Where the tokens of an image go in one layer; int32, on the device.

    Attributes:
        begins: [H], a head's first slot.
        firsts: [H], its slots before the image area (prefix and anchors).
        score_begins: [H], the first of its scores; -1 for a head without.
        writes: [N, H], slot of token t.
        lengths: [N, H], slots that t sees, itself counted.
        heavy: [heads with heavy tokens], their numbers.
        windows: [H], the policy's.
        kepts: [H], window + heavy.
        per_visits: [H], the policy's, 0 or 1.
        decays: float32 [H], the policy's.
        slots: of a row of the batch.
        score_slots: of a row of the batch.
        live_most: most image slots of a heavy head.
    """

    begins: torch.Tensor
    firsts: torch.Tensor
    score_begins: torch.Tensor
    writes: torch.Tensor
    lengths: torch.Tensor
    heavy: torch.Tensor
    windows: torch.Tensor
    kepts: torch.Tensor
    per_visits: torch.Tensor
    decays: torch.Tensor
    slots: int
    score_slots: int
    live_most: int

    @classmethod
    def of(cls, policy: Policy, layer: int, prefix: int, device: torch.device | str = "cpu") -> SlotTables:
        """The tables of a layer for prompts of `prefix` tokens."""
        tokens = policy.shape.geometry.tokens
        stride = min(policy.stride, tokens)
        numbers = [tensor[layer].tolist() for tensor in (policy.window, policy.heavy, policy.anchor)]
        begins, firsts, score_begins, columns = [], [], [], []
        slots = score_slots = live_most = 0
        for window, heavy, anchor in zip(*numbers, strict=True):
            begins.append(slots)
            firsts.append(prefix + anchor)
            score_begins.append(score_slots if heavy else -1)
            area = window + heavy + stride if heavy else window + 1
            slots += prefix + anchor + area
            if heavy:
                score_slots += area
                live_most = max(live_most, area)
            columns.append(_column(window, heavy, anchor, prefix, stride, tokens))
        whole: dict[str, Any] = {"dtype": torch.int32, "device": device}
        return cls(
            begins=torch.tensor(begins, **whole),
            firsts=torch.tensor(firsts, **whole),
            score_begins=torch.tensor(score_begins, **whole),
            writes=torch.tensor([writes for writes, _ in columns], **whole).t().contiguous(),
            lengths=torch.tensor([lengths for _, lengths in columns], **whole).t().contiguous(),
            heavy=torch.tensor([head for head, heavy in enumerate(numbers[1]) if heavy], **whole),
            windows=policy.window[layer].to(**whole),
            kepts=(policy.window + policy.heavy)[layer].to(**whole),
            per_visits=policy.per_visit[layer].to(**whole),
            decays=policy.decay[layer].to(device=device, dtype=torch.float32),
            slots=slots,
            score_slots=score_slots,
            live_most=live_most,
        )


def _column(window: int, heavy: int, anchor: int, prefix: int, stride: int, tokens: int) -> tuple[list[int], list[int]]:
    """Slot and length of every token of one head."""
    writes, lengths, live = [], [], 0
    for t in range(tokens):
        if t < anchor:
            writes.append(prefix + t)
            lengths.append(prefix + t + 1)
        elif heavy:
            writes.append(prefix + anchor + live)
            live += 1
            lengths.append(prefix + anchor + live)
        else:
            ring = window + 1
            writes.append(prefix + anchor + (t - anchor) % ring)
            lengths.append(prefix + anchor + min(t - anchor + 1, ring))
        if heavy and (t + 1) % stride == 0:
            live = min(live, window + heavy)
    return writes, lengths


class FlatLayer:
    """One layer's slots, scores and tables.

    Args:
        policy: what to keep.
        layer: its number.
        like: keys [B, H, P, D] of the prefix, for batch, prefix, head size, dtype and device.
        padding: int32 [B], tokens of the prefix that no query sees, from the left.
    """

    def __init__(self, policy: Policy, layer: int, like: torch.Tensor, padding: torch.Tensor) -> None:
        batch, self.heads, prefix, self.size = like.shape
        self.stride = min(policy.stride, policy.shape.geometry.tokens)
        self.queries_per_kv = policy.shape.query_heads // policy.shape.kv_heads
        self.tables = SlotTables.of(policy, layer, prefix, like.device)
        self.padding = padding
        self.batch, self.prefix = batch, prefix
        tables, device = self.tables, like.device
        self.keys = like.new_zeros(batch, tables.slots, self.size)
        self.values = torch.zeros_like(self.keys)
        self.scores = torch.zeros(batch, tables.score_slots, dtype=torch.float32, device=device)
        self.positions = torch.full((batch, tables.score_slots), -1, dtype=torch.int32, device=device)

    def fill_prefix(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """keys, values [B, H, P, D]."""
        for head, begin in enumerate(self.tables.begins.tolist()):
            self.keys[:, begin : begin + self.prefix] = keys[:, head]
            self.values[:, begin : begin + self.prefix] = values[:, head]

    def tensors(self) -> list[torch.Tensor]:
        """Everything that an image's cache takes; tables and scratch are shared by all rows of the batch."""
        return [self.keys, self.values, self.scores, self.positions]

    def nbytes(self) -> int:
        """Bytes of `tensors`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


class KernelScratch:
    """What the kernels of all layers write between their launches; one for a cache.

    Args:
        layers: of the cache.
        splits: see below.

    Attributes:
        splits: parts that the keys of a head are attended to in.
        step: most slots that a token sees.
        logits: float32 [B * Hq, step].
        part_top: float32 [B * Hq * splits], the largest logit of a part.
        part_sum: float32 [B * Hq * splits], its sum of exponentials.
        part_out: float32 [B * Hq * splits, D], its weighted values.
        holes: int32 [B * heavy heads * stride], slots that a choice leaves empty.
        movers: int32 [B * heavy heads * stride], slots that take their place.
    """

    def __init__(self, layers: list[FlatLayer], splits: int) -> None:
        first = layers[0]
        rows = first.batch * first.heads * first.queries_per_kv
        self.splits = splits
        self.step = max(int(layer.tables.lengths.max()) for layer in layers)
        device = first.keys.device
        self.logits = torch.empty(rows, self.step, dtype=torch.float32, device=device)
        parts = rows * splits if splits > 1 else 1
        self.part_top = torch.empty(parts, dtype=torch.float32, device=device)
        self.part_sum = torch.empty(parts, dtype=torch.float32, device=device)
        self.part_out = torch.empty(parts, first.size, dtype=torch.float32, device=device)
        heavies = max(len(layer.tables.heavy) for layer in layers)
        self.holes = torch.empty(max(first.batch * heavies * first.stride, 1), dtype=torch.int32, device=device)
        self.movers = torch.empty_like(self.holes)


def attend_flat(
    layer: FlatLayer,
    scratch: KernelScratch,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    now: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Token `now` (int32 [1], on the device): query [B, Hq, D], key, value [B, H, D], contiguous -> output [B, Hq, D]."""
    from headscope.runtime.decoders import triton_kernels as kernels

    tables, splits = layer.tables, scratch.splits
    out, sizes = torch.empty_like(query), _sizes(layer, splits)
    kernels.attend[(layer.batch * layer.heads, splits)](
        query,
        key,
        value,
        layer.keys,
        layer.values,
        layer.scores,
        layer.positions,
        scratch.logits,
        out,
        scratch.part_top,
        scratch.part_sum,
        scratch.part_out,
        layer.padding,
        now,
        tables.begins,
        tables.firsts,
        tables.score_begins,
        tables.writes,
        tables.lengths,
        scale,
        tables.slots,
        tables.score_slots,
        scratch.step,
        **sizes,
        precision="ieee" if query.dtype == torch.float32 else "tf32",  # exact for products of 16 bits
    )
    if splits > 1:
        kernels.combine[(layer.batch * layer.heads,)](
            layer.scores,
            scratch.logits,
            out,
            scratch.part_top,
            scratch.part_sum,
            scratch.part_out,
            now,
            tables.firsts,
            tables.score_begins,
            tables.lengths,
            tables.score_slots,
            scratch.step,
            **sizes,
        )
    return out


def _sizes(layer: FlatLayer, splits: int) -> dict[str, int]:
    """What the kernels of attention are compiled for."""
    padded = 1 if layer.queries_per_kv == 1 else 16  # a product of the tensor cores takes 16 rows
    return {
        "heads": layer.heads,
        "heads_of": layer.queries_per_kv,
        "padded": padded,
        "size": layer.size,
        "wide": max(_power(layer.size), 16 if padded > 1 else 1),
        "block": 64,
        "splits": splits,
    }


def choose_flat(layer: FlatLayer, scratch: KernelScratch, now: torch.Tensor) -> None:
    """The stride end after token `now`."""
    from headscope.runtime.decoders import triton_kernels as kernels

    tables = layer.tables
    heavies = len(tables.heavy)
    if not heavies:
        return
    kernels.choose[(layer.batch * heavies,)](
        layer.keys,
        layer.values,
        layer.scores,
        layer.positions,
        scratch.holes,
        scratch.movers,
        now,
        tables.heavy,
        tables.begins,
        tables.firsts,
        tables.score_begins,
        tables.lengths,
        tables.windows,
        tables.kepts,
        tables.decays,
        tables.per_visits,
        tables.slots,
        tables.score_slots,
        layer.stride,
        heads=layer.heads,
        heavies=heavies,
        size=layer.size,
        wide=_power(layer.size),
        most=_power(tables.live_most),
    )


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << max(number - 1, 0).bit_length()
