"""Kinds of scores in the GPU's choice, in Triton's interpreter where there is no GPU: the definition, token by token."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

pytest.importorskip("triton")

from headscope.errors import PolicyMismatch
from headscope.geometry import Geometry
from headscope.models.janus import JanusModel
from headscope.policy import SCORES, ModelShape, Policy, register_score
from headscope.runtime.decoders.flat_attention import KernelScratch, choose_flat
from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.runtime.quantized import dequantize, quantize
from tests.runtime.test_flat import DEVICE, PREFIX, run_flat, run_reference
from tests.runtime.test_scores import tables, weights_by_hand

ROWS, COLS, BATCH = 3, 5, 2
TOKENS = ROWS * COLS


def shape_of(size: int, group: int = 1) -> ModelShape:
    return ModelShape("toy", 1, 3 * group, 3, size, Geometry(ROWS, COLS), "a", "w")


@st.composite
def policies(draw: st.DrawFn, group: int = 1) -> Policy:
    """Of three heads, of which the last chooses."""

    def per_head(*some: float) -> torch.Tensor:
        return torch.tensor([draw(st.lists(st.sampled_from(some), min_size=3, max_size=3))])

    shape = shape_of(draw(st.sampled_from([8, 33, 70])), group)
    heavy = per_head(0, 1, 3)
    heavy[0, 2] = draw(st.sampled_from([1, 3, 5]))
    policy = Policy.uniform(
        shape,
        window=per_head(0, 1, 3),
        heavy=heavy,
        anchor=per_head(0, 2),
        decay=per_head(0.0, 0.5, 1.0),
        per_visit=per_head(0, 1),
        bits=per_head(16, 8, 4),
        score=per_head(0, 1, 2, 2),
        stride=draw(st.sampled_from([1, 5, 15])),
        prefix=PREFIX,
    )
    return policy.replace(tables=tables(shape, draw(st.integers(0, 99)), draw(st.integers(1, 3))))


def filled(policy: Policy, t: int, seed: int) -> tuple[FlatLayer, dict[tuple[int, int], dict[int, tuple[float, list[float]]]]]:
    """A layer as it is before the choice at t, and by row and head the score and value of every image token that is live."""
    generator = torch.Generator().manual_seed(seed)
    size, heads = policy.shape.head_dim, policy.shape.kv_heads
    like = torch.zeros(BATCH, heads, PREFIX, size, device=DEVICE)
    layer, live = FlatLayer(policy, 0, like, torch.zeros(BATCH, dtype=torch.int32, device=DEVICE)), {}
    tables, stride = layer.tables, layer.stride
    for h in tables.heavy.tolist():
        count, anchor = int(tables.lengths[t, h] - tables.firsts[h]), int(policy.anchor[0, h])
        newer = list(range(max(t + 1 - stride - int(policy.window[0, h]), anchor), t + 1))[-count:]
        for b in range(BATCH):
            older = torch.randperm(newer[0] - anchor, generator=generator)[: count - len(newer)] + anchor
            positions = torch.tensor([*older.tolist(), *newer], dtype=torch.int32)
            scores = torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.8)  # ties of none
            values = torch.randn(count, size, generator=generator) * torch.rand(count, 1, generator=generator) * 3
            at, bits = int(tables.score_begins[h]), int(policy.bits[0, h])
            layer.positions[b, at : at + count] = positions.to(DEVICE)
            layer.scores[b, at : at + count] = scores.to(DEVICE)
            if bits == 16:
                begin = int(tables.begins[h]) + anchor
                layer.image_of(layer.values)[b, begin : begin + count] = values.to(DEVICE)
            else:
                written, begin = quantize(values, bits), int(tables.code_begins[h])
                layer.codes[bits][1, b, begin : begin + count] = written[0].to(DEVICE)
                layer.steps[bits][1, b, begin : begin + count] = torch.stack(written[1:], -1).to(DEVICE)
                values = dequantize(*written, size, torch.float32)
            both = zip(scores.tolist(), values.tolist(), strict=True)
            live[b, h] = dict(zip(positions.tolist(), both, strict=True))
    return layer, live


def worth_of(policy: Policy, h: int, t: int, position: int, score: float, value: list[float]) -> float:
    """As the definition says."""
    worth = score / (t + 1 - position) if policy.per_visit[0, h] else score
    length, kind = math.sqrt(sum(number * number for number in value)), policy.score_of(0, h)
    if kind == "expected":
        assert policy.tables is not None
        return (worth + 0.05) * weights_by_hand(policy.tables, h)[t * ROWS // TOKENS][position] * length
    return worth * length if kind == "value" else worth


@given(policies(), st.integers(0, 2**16))
@example(Policy.uniform(shape_of(8), window=1, heavy=3, bits=torch.tensor([[16, 8, 4]]), score=1, stride=5, prefix=PREFIX), 1)
@settings(max_examples=20, deadline=None)
def test_the_best_by_their_kind_stay_and_take_all_that_is_theirs_along(policy: Policy, seed: int) -> None:
    t = TOKENS - 1 - policy.stride * (policy.stride < 15)
    layer, live = filled(policy, t, seed)
    choose_flat(layer, KernelScratch([layer], 1), torch.tensor([t], dtype=torch.int32, device=DEVICE))
    for (b, h), tokens in live.items():
        kept, window = int(layer.tables.kepts[h]), int(policy.window[0, h])
        worths = {p: math.inf if p > t - window else worth_of(policy, h, t, p, *facts) for p, facts in tokens.items()}
        best = sorted(tokens, key=lambda p: (worths[p], p), reverse=True)[:kept]
        at, count = int(layer.tables.score_begins[h]), min(kept, len(tokens))
        found = layer.positions[b, at : at + count].tolist()
        assert sorted(found) == sorted(best)
        scores = layer.scores[b, at : at + count].tolist()
        assert scores == pytest.approx([tokens[p][0] * float(policy.decay[0, h]) for p in found])
        bits = int(policy.bits[0, h])
        if bits == 16:
            begin = int(layer.tables.begins[h]) + int(policy.anchor[0, h])
            values = layer.image_of(layer.values)[b, begin : begin + count]
        else:
            begin = int(layer.tables.code_begins[h])
            codes, steps = (part[bits][1, b, begin : begin + count] for part in (layer.codes, layer.steps))
            values = dequantize(codes, steps[..., 0], steps[..., 1], layer.size, torch.float32)
        assert values.cpu().tolist() == [pytest.approx(tokens[p][1], rel=1e-6, abs=1e-6) for p in found]


@pytest.mark.triton
@given(st.data(), st.sampled_from([1, 2]), st.integers(0, 2**16), st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_it_gives_what_the_cpu_gives(data: st.DataObject, group: int, seed: int, splits: int) -> None:
    policy = data.draw(policies(group))
    generator = torch.Generator().manual_seed(seed)
    size, length = policy.shape.head_dim, PREFIX + TOKENS
    q, k, v = (torch.randn(2, h, length, size, generator=generator) * size**-0.25 for h in (3 * group, 3, 3))
    v = v * torch.rand(2, 3, length, 1, generator=generator) * 3
    expected, cache = run_reference(policy, q, k, v, tokens=TOKENS)
    found, layer = run_flat(policy, q, k, v, splits, [0, 0], tokens=TOKENS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert layer.nbytes() == cache.nbytes()


def test_tables_take_the_bytes_that_the_policy_says_once_for_all_rows() -> None:
    policy = Policy.uniform(shape_of(8), window=1, heavy=3, score=2, stride=5, prefix=PREFIX)
    policy = policy.replace(tables=tables(policy.shape))
    layer, _ = filled(policy, 9, 1)
    assert layer.kinds.tables.nbytes == policy.table_bytes
    fewer = policy.replace(score=torch.tensor([[0, 2, 1]], dtype=torch.uint8))
    kinds = filled(fewer, 9, 1)[0].kinds
    assert kinds.tables.heads.tolist() == [1]
    assert kinds.of_head.tolist() == [0, 0, 0]
    assert kinds.kinds.tolist() == [0, 2, 1]


def test_what_it_does_not_know_is_refused_by_name(tiny: JanusModel) -> None:
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    policy = Policy.uniform(tiny.shape, window=1, heavy=3, stride=4, prefix=12)
    register_score("oldest", lambda seen: -seen.positions.float())
    try:
        said = LlamaCudaDecoder.lacking(on_gpu, policy.replace(scores=("oldest",)))  # type: ignore[arg-type]
    finally:
        del SCORES["oldest"]
    assert said == "knows the scores received, value, expected, and this policy has oldest"
    with pytest.raises(PolicyMismatch, match="layer 0 head 0: score expected needs a table"):
        LlamaCudaDecoder(tiny, policy.replace(score=torch.full_like(policy.score, 2)))
