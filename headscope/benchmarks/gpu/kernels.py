"""Step `kernels`: every kernel of the runtime against float64, from caches of random numbers, at the shape's real sizes.

Slots that nobody has written hold 1e4, and outputs lie in memory that held NaN, so that what is read or left out by mistake
shows. Each runs twice, and its second result has to have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.context import Context
from headscope.geometry import Geometry
from headscope.policy import BUILT_IN, SCORES, Candidates, ModelShape, Policy, ScoreTable
from headscope.runtime.decoders.flat_attention import KernelScratch, attend_flat, choose_flat
from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.quantized import dequantize, quantize

PREFIX, UNWRITTEN, PADDED = 32, 1e4, 3
# Largest relative error, ||found - expected|| / ||expected||.
LIMITS = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 3e-3}


@dataclass(frozen=True)
class Case:
    """One layer at one token.

    Attributes:
        dtype: of keys and values.
        size: numbers of a head.
        group: query heads of a KV head.
        bits: of its heads in turn.
        splits: parts that a head's keys are attended to in.
        rows: of the batch.
        scores: kinds of scores of its heavy heads in turn, places in `BUILT_IN`.
    """

    dtype: str
    size: int
    group: int
    bits: tuple[int, ...]
    splits: int
    rows: int
    scores: tuple[int, ...] = (0,)

    def about(self) -> dict[str, object]:
        """As a record has it."""
        scores = {"scores": list(self.scores)} if any(self.scores) else {}
        sizes = {"dtype": self.dtype, "head_dim": self.size, "group": self.group}
        return {**sizes, "bits": list(self.bits), "splits": self.splits, **scores}


def run(context: Context) -> None:
    """Record an error for each kernel and case."""
    worst: list[str] = []
    for case in cases(context):
        try:
            worst += _one(context, case)
        except Exception as error:  # the other cases go on
            context.fault(faults.sentence(error, f"kernels, {case}"), **case.about())
    from headscope.benchmarks.gpu import other_kernels

    with torch.inference_mode():
        worst += other_kernels.run(context)
    context.record("kernels that are off", worst or "none")


def cases(context: Context) -> Iterator[Case]:
    """The shape's own sizes first, then other head sizes and groups."""
    if context.dry:
        yield Case("float32", 16, 2, (16, 8), 2, 2, (2,))
        return
    size = context.size
    own, group = size.head_dim, size.heads // size.kv_heads
    mixed = (16, 8, 4, 16)
    for bits in ((16,), (8,), (4,), mixed):
        yield Case("bfloat16", own, group, bits, 1, 16)
    yield Case("bfloat16", own, group, mixed, 4, 16)
    for bits in ((16,), mixed):
        yield Case("float32", own, group, bits, 1, 16)
    for bits in ((16,), (8,), (4,)):
        yield Case("bfloat16", own, group, bits, 1, 16, (2, 1))
    for head_dim in (64, 24, 100, 96, 256):
        yield Case("bfloat16", head_dim, 1, mixed, 1, 4)
    for groups in (4, 32, 7):
        yield Case("bfloat16", own, groups, mixed, 2, 4)
    yield Case("float16", own, 1, mixed, 1, 4)
    yield Case("float32", 256, 2, (16,), 1, 4)


@torch.inference_mode()
def _one(context: Context, case: Case) -> list[str]:
    """Attention and choice of one case -> what is off."""
    layer, qkv, angles, t = prepared(context, case)
    scratch, now = KernelScratch([layer], case.splits), torch.tensor([t], dtype=torch.int32, device=context.device)
    scale, found = case.size**-0.5, []
    before = [tensor.clone() for tensor in layer.tensors()]
    outputs = []
    for _ in range(2):
        for tensor, first in zip(layer.tensors(), before, strict=True):
            tensor.copy_(first)
        poison = torch.full_like(qkv, float("nan"))  # what its memory holds when it is given again
        del poison
        outputs.append(attend_flat(layer, scratch, qkv, angles, now, scale).clone())
    expected, mass = reference(layer, before[layer_scores(layer)], qkv, angles, t, scale)
    errors = {"attend": relative(outputs[1], expected), "scores": relative(layer.scores, mass)}
    limit = LIMITS[case.dtype]
    for name, error in errors.items():
        same = bool(torch.equal(*outputs))
        context.record(f"error of {name}", error, "relative", limit=limit, twice_equal=same, token=t, **case.about())
        if not (error <= limit and same):
            found.append(f"{name} {case}")
    stays = staying(layer, t)
    choose_flat(layer, scratch, now)
    wrong = sum(int((sorted_positions(layer, b, h) != kept).sum()) for (b, h), kept in stays.items())
    context.record("tokens chosen otherwise", wrong, "tokens", heads=len(stays), token=t, **case.about())
    return found + ([f"choose {case}"] if wrong else [])


def prepared(context: Context, case: Case) -> tuple[FlatLayer, torch.Tensor, tuple[torch.Tensor, torch.Tensor], int]:
    """A layer as it is before a token at a stride end: random numbers in all slots that were written."""
    side = max(context.size.side, 8)
    kv_heads = 4 if not context.dry else 2
    shape = ModelShape("random", 1, kv_heads * case.group, kv_heads, case.size, Geometry(side, side), "random", "random")
    tokens, heads = side * side, torch.arange(kv_heads)
    bits = torch.tensor([[case.bits[h % len(case.bits)] for h in range(kv_heads)]], dtype=torch.uint8)
    heavy = torch.where(heads % 2 == 1, tokens // 7, 0)[None]
    window = torch.where(heads % 2 == 1, tokens // 9, tokens // 5)[None]
    per_visit = (heads // 2 % 2)[None]
    numbers: dict[str, Any] = {
        "window": window,
        "heavy": heavy,
        "anchor": (heads % 3)[None],
        "per_visit": per_visit,
        "prompt": ((heads + 1) // 2 % 2)[None],
        "bits": bits,
        "score": torch.tensor([[case.scores[h // 2 % len(case.scores)] for h in range(kv_heads)]]),
    }
    generator = torch.Generator().manual_seed(case.size + 7 * case.group + case.splits)
    places = [torch.randn(kv_heads, 2, length, generator=generator) for length in (side, tokens)]
    tables = ScoreTable.written(torch.arange(kv_heads, dtype=torch.int32), *places)
    policy = Policy.uniform(shape, stride=side, prefix=PREFIX, **numbers).replace(tables=tables)
    dtype = getattr(torch, case.dtype)

    def some(*lengths: int) -> torch.Tensor:
        return torch.randn(*lengths, generator=generator).to(context.device, dtype)

    padding = torch.zeros(case.rows, dtype=torch.int32, device=context.device)
    padding[1] = PADDED
    like = torch.empty(1, device=context.device, dtype=dtype).expand(case.rows, kv_heads, PREFIX, case.size)
    layer = FlatLayer(policy, 0, like, padding, case.rows // 2 + 1)  # the second half of the rows shares a prefix
    t = side * (side - 2) - 1  # the end of a row
    for tensor in (layer.keys, layer.values):
        tensor.copy_(some(*tensor.shape))
    for kind, codes in layer.codes.items():
        for part in range(2 if codes.numel() else 0):
            written, unit, zero = quantize(some(*codes.shape[1:3], case.size), kind)
            codes[part] = written
            layer.steps[kind][part] = torch.stack([unit, zero], -1)
    layer.scores.copy_(torch.rand(layer.scores.shape, generator=generator))
    _positions(layer, t, generator)
    seen_by_head = layer.tables.lengths[t] - layer.tables.prompts
    for h, (begin, length) in enumerate(zip(layer.tables.begins.tolist(), seen_by_head.tolist(), strict=True)):
        if int(layer.tables.bits[h]) == 16:
            end = (*layer.tables.begins.tolist(), layer.tables.slots)[h + 1]
            for slots in (layer.keys, layer.values):
                layer.image_of(slots)[:, begin + length : end] = UNWRITTEN
    angle = torch.rand(PREFIX + tokens, case.size, generator=generator) * 6.283
    angles = (angle.cos().to(context.device, dtype), angle.sin().to(context.device, dtype))
    return layer, some(case.rows, (case.group + 2) * kv_heads * case.size), angles, t


def _positions(layer: FlatLayer, t: int, generator: torch.Generator) -> None:
    """Image tokens in the slots of heavy heads: those since the last stride end, and others before, each once."""
    tables = layer.tables
    for h in tables.heavy.tolist():
        live, at = int(tables.lengths[t, h] - tables.firsts[h]), int(tables.score_begins[h])
        anchor = int(tables.firsts[h] - tables.prompts[h])
        recent = layer.stride + int(tables.windows[h])
        for b in range(layer.batch):
            older = torch.randperm(t + 1 - recent - anchor, generator=generator)[: live - recent] + anchor
            newer = torch.arange(t + 1 - recent, t)
            layer.positions[b, at : at + live - 1] = torch.cat([older, newer]).to(layer.positions)
            layer.positions[b, at + live - 1] = -1  # the new token's, written by the kernel
            layer.scores[b, at + live - 1] = 0.0


def layer_scores(layer: FlatLayer) -> int:
    """Which of the layer's tensors the scores are."""
    return next(number for number, tensor in enumerate(layer.tensors()) if tensor is layer.scores)


def reference(
    layer: FlatLayer, scores: torch.Tensor, qkv: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], t: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention gives on the slots as they are now, the new token's among them: output, and scores after it; float64."""
    tables, size, group, heads = layer.tables, layer.size, layer.queries_per_kv, layer.heads
    numbers = qkv.view(layer.batch, -1, size)
    cos, sin = (table[layer.prefix + t].double() for table in angles)
    query = numbers[:, : heads * group].double()
    query = (query * cos + query.roll(size // 2, -1) * sin).to(qkv.dtype).double()
    out = torch.zeros(layer.batch, heads * group, size, dtype=torch.float64, device=qkv.device)
    mass = scores.double().clone()
    for h, prompt in enumerate(tables.prompts.tolist()):
        unseen = (layer.padding - (layer.prefix - prompt)).clamp(min=0)
        hidden = torch.arange(prompt, device=qkv.device) < unseen[:, None]
        keys, values = (seen(layer, t, h, part) for part in (0, 1))
        logits = query[:, h * group : (h + 1) * group] @ keys.transpose(1, 2) * scale
        logits[:, :, :prompt].masked_fill_(hidden[:, None], -torch.inf)
        weights = functional.softmax(logits, -1)
        out[:, h * group : (h + 1) * group] = weights @ values
        at, first, length = int(tables.score_begins[h]), int(tables.firsts[h]), int(tables.lengths[t, h])
        if at >= 0:
            mass[:, at : at + length - first] += weights[:, :, first:].mean(1)
    return out.flatten(1), mass


def seen(layer: FlatLayer, t: int, h: int, part: int) -> torch.Tensor:
    """Keys (part 0) or values (part 1) that token t sees in head h, float64 [B, length, D]."""
    tables, bits = layer.tables, int(layer.tables.bits[h])
    begin, first, length = int(tables.begins[h]), int(tables.firsts[h]), int(tables.lengths[t, h])
    prompt = int(tables.prompts[h])
    numbers = (layer.keys, layer.values)[part]
    of_row = torch.arange(layer.batch, device=numbers.device).clamp(max=layer.prefixes - 1)
    ahead, image = layer.prompt_of(numbers, h)[of_row].double(), layer.image_of(numbers)
    if bits == 16:
        return torch.cat([ahead, image[:, begin : begin + length - prompt].double()], 1)
    at, steps = int(tables.code_begins[h]), layer.steps[bits][part]
    kept = slice(at, at + length - first)
    coded = dequantize(layer.codes[bits][part][:, kept], steps[:, kept, :, 0], steps[:, kept, :, 1], layer.size, torch.float64)
    return torch.cat([ahead, image[:, begin : begin + first - prompt].double(), coded], 1)


def staying(layer: FlatLayer, t: int) -> dict[tuple[int, int], torch.Tensor]:
    """By row and heavy head: the image tokens that stay after the choice at t, in order."""
    tables, found = layer.tables, {}
    for number, h in enumerate(tables.heavy.tolist()):
        at, live = int(tables.score_begins[h]), int(tables.lengths[t, h] - tables.firsts[h])
        kept, window = int(tables.kepts[h]), int(tables.windows[h])
        values, weighed = seen(layer, t, h, 1)[:, -live:], layer.kinds.tables
        table = weighed.weights(weighed.row_of(t))[layer.kinds.of_head[number]] if len(weighed.heads) else None
        worth = SCORES[BUILT_IN[int(layer.kinds.kinds[number])]].worth
        for b in range(layer.batch):
            positions = layer.positions[b, at : at + live].long()
            received = layer.scores[b, at : at + live].double()
            if bool(tables.per_visits[h]):
                received = received / (t + 1 - positions)
            worths = worth(_candidates(received, positions, t, values[b], table)).tolist()
            position = positions.tolist()
            order = sorted(range(live), key=lambda i: (position[i] <= t - window, -worths[i], -position[i]))
            newest = [i for i in range(live) if position[i] > t - window]
            best = [i for i in order if position[i] <= t - window][: kept - len(newest)]
            found[b, h] = torch.tensor(sorted(position[i] for i in newest + best))
    return found


def _candidates(
    received: torch.Tensor, positions: torch.Tensor, t: int, values: torch.Tensor, table: torch.Tensor | None
) -> Candidates:
    """What a kind of score is told: values [n, D] as attention reads them, weights [tokens] of the row of t."""
    weights = torch.ones_like(received) if table is None else table[positions]
    return Candidates(received, positions, t, lambda: values.norm(dim=-1), lambda: weights)


def sorted_positions(layer: FlatLayer, b: int, h: int) -> torch.Tensor:
    """The image tokens in the first `kept` slots of a heavy head."""
    at, kept = int(layer.tables.score_begins[h]), int(layer.tables.kepts[h])
    return layer.positions[b, at : at + kept].cpu().long().sort().values


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||; NaN never passes a comparison."""
    return float((found.double() - expected).norm() / expected.norm())
