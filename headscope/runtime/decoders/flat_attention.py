"""Launches of the kernels over a layer's flat cache: attention of one token, and the choice at a stride end."""

from __future__ import annotations

import os
from typing import Any

import torch

from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.decoders.settings import Settings, settings_for

# Programs that keep a large GPU busy: with fewer rows and heads the keys of a head are split. Without a GPU there are fewer:
# Triton's interpreter takes one after the other, tens of milliseconds each.
PROGRAMS, INTERPRETED_PROGRAMS = 512, 8
MOST_GROUP, MOST_SIZE = 32, 256  # query heads of a KV head, and numbers of a head, that the kernels take


class KernelScratch:
    """What the kernels of all layers write between their launches; one for a cache.

    Args:
        layers: of the cache.
        splits: see below; by default as many as keep the GPU busy, 8 at most.
        settings: of the attention kernel in all layers; by default those known to be good for the card and a layer's bits.

    Attributes:
        splits: parts that the keys of a head are attended to in.
        step: most slots that a token sees.
        logits: float32 [B * Hq, step]; at a choice, what tokens are worth.
        part_top: float32 [B * Hq * splits], the largest logit of a part.
        part_sum: float32 [B * Hq * splits], its sum of exponentials.
        part_out: float32 [B * Hq * splits, D], its weighted values.
        holes: int32 [B * heavy heads * stride], slots that a choice leaves empty.
        movers: int32 [B * heavy heads * stride], slots that take their place.
    """

    def __init__(self, layers: list[FlatLayer], splits: int | None = None, settings: Settings | None = None) -> None:
        first = layers[0]
        rows = first.batch * first.heads * first.queries_per_kv
        device = first.keys.device
        programs = PROGRAMS if device.type == "cuda" else INTERPRETED_PROGRAMS
        self.splits = splits or max(1, min(8, programs // (first.batch * first.heads)))
        self._settings = settings
        self.step = max(int(layer.tables.lengths.max()) for layer in layers)
        self.logits = torch.empty(rows, self.step, dtype=torch.float32, device=device)
        parts = rows * self.splits if self.splits > 1 else 1
        self.part_top = torch.empty(parts, dtype=torch.float32, device=device)
        self.part_sum = torch.empty(parts, dtype=torch.float32, device=device)
        self.part_out = torch.empty(parts, first.size, dtype=torch.float32, device=device)
        heavies = max(len(layer.tables.heavy) for layer in layers)
        self.holes = torch.empty(max(first.batch * heavies * first.stride, 1), dtype=torch.int32, device=device)
        self.movers = torch.empty_like(self.holes)

    def settings(self, layer: FlatLayer) -> Settings:
        """How a layer's attention is cut."""
        if self._settings is not None:
            return self._settings
        least = min((bits for bits, slots in layer.tables.coded.items() if slots), default=16)
        return settings_for(layer.keys.device, layer.keys.dtype, layer.size, layer.queries_per_kv, least)


def attend_flat(
    layer: FlatLayer,
    scratch: KernelScratch,
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    now: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Token `now` of every row, whose key and value are written first.

    Args:
        layer: the cache.
        scratch: of all layers.
        qkv: [B, (Hq + 2 H) * D] as projected, contiguous; rotary embedding is applied here.
        angles: cosine and signed sine [positions, D], see `LlamaStep`; the token's position is prefix + now.
        now: int32 [1], on the device.
        scale: of the scores.

    Returns:
        [B, Hq * D].
    """
    from headscope.runtime.decoders.kernels import attention as kernels

    tables, splits, settings = layer.tables, scratch.splits, scratch.settings(layer)
    out = qkv.new_empty(layer.batch, layer.heads * layer.queries_per_kv * layer.size)
    sizes = kernel_sizes(layer.heads, layer.queries_per_kv, layer.size, settings.block, splits)
    kernels.attend[(layer.batch * layer.heads, splits)](
        qkv,
        *angles,
        layer.keys,
        layer.values,
        layer.codes[8],
        layer.steps[8].view(torch.int32),
        layer.codes[4],
        layer.steps[4].view(torch.int32),
        layer.scores,
        layer.positions,
        scratch.logits,
        out,
        scratch.part_top,
        scratch.part_sum,
        scratch.part_out,
        layer.padding,
        now,
        tables.prompts,
        tables.fronts,
        tables.begins,
        tables.firsts,
        tables.score_begins,
        tables.bits,
        tables.code_begins,
        tables.writes,
        tables.lengths,
        scale * 1.4426950408889634,
        layer.batch,
        layer.prefix,
        layer.prefixes,
        tables.front,
        tables.slots,
        tables.coded[8],
        tables.coded[4],
        tables.score_slots,
        scratch.step,
        **sizes,
        stages=settings.stages,
        eight=tables.coded[8] > 0,
        four=tables.coded[4] > 0,
        exact=qkv.dtype == torch.float32 or interpreted(),
        num_warps=settings.warps,
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


def choose_flat(layer: FlatLayer, scratch: KernelScratch, now: torch.Tensor) -> None:
    """The stride end after token `now`."""
    from headscope.runtime.decoders.kernels import choice as kernels

    tables, kinds = layer.tables, layer.kinds
    heavies = len(tables.heavy)
    if not heavies:
        return
    kernels.choose[(layer.batch * heavies,)](
        layer.keys,
        layer.values,
        layer.codes[8],
        layer.steps[8].view(torch.int32),
        layer.codes[4],
        layer.steps[4].view(torch.int32),
        layer.scores,
        layer.positions,
        scratch.holes,
        scratch.movers,
        scratch.logits,  # which no kernel reads between two tokens
        now,
        tables.heavy,
        tables.image_begins,
        tables.firsts,
        tables.score_begins,
        tables.bits,
        tables.code_begins,
        tables.lengths,
        tables.windows,
        tables.kepts,
        tables.decays,
        tables.per_visits,
        kinds.kinds,
        kinds.of_head,
        kinds.tables.scale,
        kinds.tables.rows,
        kinds.tables.places,
        layer.batch,
        layer.front,
        tables.slots,
        tables.coded[8],
        tables.coded[4],
        tables.score_slots,
        layer.stride,
        scratch.step,
        kinds.tables.scale.shape[1],
        kinds.tables.rows.shape[2],
        kinds.tables.places.shape[2],
        heads=layer.heads,
        heavies=heavies,
        size=layer.size,
        wide=wide_of(layer.size),
        most=power(tables.live_most),
        eight=tables.coded[8] > 0,
        four=tables.coded[4] > 0,
        scored=kinds.other,
    )


def kernel_sizes(heads: int, heads_of: int, size: int, block: int, splits: int) -> dict[str, Any]:
    """What the kernels of attention are compiled for."""
    padded = max(power(heads_of), 16)  # a product of the tensor cores takes 16 rows
    return {
        "heads": heads,
        "heads_of": heads_of,
        "padded": padded,
        "size": size,
        "wide": wide_of(size),
        "block": block,
        "splits": splits,
    }


def wide_of(size: int) -> int:
    """Numbers of a head in a kernel: a power of two, of 32 at least."""
    return max(power(size), 32)


def power(number: int) -> int:
    """The next power of two."""
    return 1 << max(number - 1, 0).bit_length()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which takes products of bfloat16 wrongly."""
    return os.environ.get("TRITON_INTERPRET") == "1"
