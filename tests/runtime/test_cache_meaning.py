"""The cache means what the policy says: against a slow oracle, token by token, in chunks, and under a mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from headscope.geometry import Geometry
from headscope.models.attention import attend_through_cache, observe
from headscope.models.groups import Group
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec
from headscope.policy.policy import Policy
from headscope.policy.shape import ModelShape
from headscope.runtime.buckets import HeavyHeads
from headscope.runtime.cache import CompressedCache, compressed
from tests.runtime.oracle import OracleHead

ROWS, COLS, SIZE = 4, 4, 4
TOKENS = ROWS * COLS


def shape_of(query_heads: int, kv_heads: int, layers: int = 1) -> ModelShape:
    return ModelShape("toy", layers, query_heads, kv_heads, SIZE, Geometry(ROWS, COLS), "a", "w")


class Module(nn.Module):
    """What transformers' attention function reads of an attention layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


def run_cache(
    policy: Policy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix: int, lengths: list[int], mask=None
) -> torch.Tensor:
    """Feed the prefix, then chunks of these lengths; q [B, Hq, P + N, D] -> outputs of the image tokens [B, N, Hq, D]."""
    cache = CompressedCache(policy)
    module = Module(q.shape[1] // k.shape[1])
    outputs = []
    at = 0
    for length in [prefix, *lengths]:
        part = slice(at, at + length)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        out, _ = attend_through_cache(module, q[:, :, part], keys, values, mask if at == 0 else None, scaling=0.7)
        outputs.append(out)
        at += length
    return torch.cat(outputs[1:], 1)


def random_states(seed: int, batch: int, query_heads: int, kv_heads: int, length: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    heads = (query_heads, kv_heads, kv_heads)
    return tuple(torch.randn(batch, h, length, SIZE, generator=generator, dtype=torch.float64) * 1.5 for h in heads)


def run_oracle(policy: Policy, q, k, v, prefix: int) -> torch.Tensor:
    batch, query_heads = q.shape[:2]
    kv_heads = k.shape[1]
    group = query_heads // kv_heads
    out = torch.zeros(batch, TOKENS, query_heads, SIZE, dtype=torch.float64)
    for b in range(batch):
        for h in range(kv_heads):
            head = OracleHead(
                prefix_keys=k[b, h, :prefix].tolist(),
                prefix_values=v[b, h, :prefix].tolist(),
                window=int(policy.window[0, h]),
                heavy=int(policy.heavy[0, h]),
                anchor=int(policy.anchor[0, h]),
                decay=float(policy.decay[0, h]),
                per_visit=bool(policy.per_visit[0, h]),
                stride=policy.stride,
            )
            for t in range(TOKENS):
                queries = q[b, h * group : (h + 1) * group, prefix + t].tolist()
                outputs, _ = head.step(queries, k[b, h, prefix + t].tolist(), v[b, h, prefix + t].tolist(), 0.7)
                out[b, t, h * group : (h + 1) * group] = torch.tensor(outputs, dtype=torch.float64)
    return out


@st.composite
def policies(draw: st.DrawFn, kv_heads: int = 3, groups: int = 2) -> Policy:
    def per_head(element: st.SearchStrategy) -> torch.Tensor:
        return torch.tensor([draw(st.lists(element, min_size=kv_heads, max_size=kv_heads))])

    size = st.sampled_from([0, 0, 1, 2, 3, 5, 8, TOKENS - 1])
    return Policy.uniform(
        shape_of(kv_heads * groups, kv_heads),
        window=per_head(size),
        heavy=per_head(st.sampled_from([0, 1, 2, 3, 6, TOKENS])),
        anchor=per_head(st.sampled_from([0, 0, 1, 3, 6])),
        decay=per_head(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        per_visit=per_head(st.sampled_from([0, 1])),
        stride=draw(st.sampled_from([1, 2, 4, 8, 16])),
        prefix=3,
    )


@given(policies(), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_every_head_attends_to_what_the_oracle_says(policy: Policy, seed: int) -> None:
    q, k, v = random_states(seed, 2, 6, 3, 3 + TOKENS)
    found = run_cache(policy, q, k, v, 3, [1] * TOKENS)
    expected = run_oracle(policy, q, k, v, 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(policies(), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_chunks_give_what_single_tokens_give(policy: Policy, seed: int) -> None:
    q, k, v = random_states(seed, 2, 6, 3, 3 + TOKENS)
    single = run_cache(policy, q, k, v, 3, [1] * TOKENS)
    stride = min(policy.stride, TOKENS)
    whole = [stride] * (TOKENS // stride)
    halves = [n for _ in whole for n in ([stride // 2] * 2 if stride > 1 else [1])]
    for lengths in (whole, halves):
        torch.testing.assert_close(run_cache(policy, q, k, v, 3, lengths), single, rtol=1e-5, atol=1e-5)


@given(st.integers(0, TOKENS - 1), st.integers(0, TOKENS), st.integers(1, TOKENS), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_window_heads_equal_full_attention_under_a_band(window: int, anchor: int, length: int, seed: int) -> None:
    policy = Policy.uniform(shape_of(2, 2), window=window, anchor=anchor, stride=1, prefix=3)
    q, k, v = random_states(seed, 1, 2, 2, 3 + TOKENS)
    lengths = [length] * (TOKENS // length) + ([TOKENS % length] if TOKENS % length else [])
    found = run_cache(policy, q, k, v, 3, lengths)
    t = torch.arange(TOKENS)
    seen = (t[None] <= t[:, None]) & ((t[:, None] - t[None] <= window) | (t[None] < anchor))
    mask = torch.cat([torch.ones(TOKENS, 3, dtype=torch.bool), seen], 1)
    logits = (0.7 * q[:, :, 3:] @ k.transpose(2, 3)).masked_fill(~mask, -torch.inf)
    expected = (logits.softmax(-1) @ v).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@given(policies(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_scores_are_those_of_every_query_when_asked_for(policy: Policy, seed: int) -> None:
    """Single tokens are added up late, chunks at once: between stride ends, too, both have received the same."""
    q, k, v = random_states(seed, 2, 6, 3, 3 + TOKENS)
    fed = 7  # in the middle of every stride above 1
    found = []
    for lengths in ([1] * fed, [n for start in range(0, fed, policy.stride) for n in [min(policy.stride, fed - start)]]):
        cache, at = CompressedCache(policy), 0
        for length in [3, *lengths]:
            keys, values = cache.update(k[:, :, at : at + length], v[:, :, at : at + length], 0)
            attend_through_cache(Module(2), q[:, :, at : at + length], keys, values, None, scaling=0.7)
            at += length
        heavy = [bucket for bucket in cache.layers[0].buckets if isinstance(bucket, HeavyHeads)]
        for bucket in heavy:
            bucket.flush_scores()
        found.append([bucket.scores[:, :, : bucket.live] for bucket in heavy])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_bfloat16_attends_to_what_the_oracle_says(stride: int) -> None:
    heavy, window = torch.tensor([[3, 0, 5]]), torch.tensor([[2, 4, 0]])
    policy = Policy.uniform(shape_of(6, 3), window=window, heavy=heavy, decay=0.9, stride=stride, prefix=3)
    q, k, v = (tensor.bfloat16() for tensor in random_states(4, 2, 6, 3, 3 + TOKENS))
    found = run_cache(policy, q, k, v, 3, [1] * TOKENS)
    expected = run_oracle(policy, *(tensor.double() for tensor in (q, k, v)), 3)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).abs().mean()) < 2.0**-7  # a few roundings of numbers around 1


def test_scores_stay_right_over_a_long_image() -> None:
    """576 tokens in bfloat16, nothing dropped: what every token received, against float64, and in all one a query."""
    tokens, prefix = 576, 8
    shape = ModelShape("long", 1, 2, 2, SIZE, Geometry(24, 24), "a", "w")
    policy = Policy.uniform(shape, window=0, heavy=tokens, stride=24, prefix=prefix)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, prefix + tokens, SIZE, generator=generator).bfloat16() for _ in range(3))
    cache = CompressedCache(policy)
    for start, length in [(0, prefix), *((prefix + t, 1) for t in range(tokens))]:
        part = slice(start, start + length)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        attend_through_cache(Module(1), q[:, :, part], keys, values, None, scaling=0.7)
    bucket = cache.layers[0].buckets[0]
    logits = 0.7 * q.double() @ k.double().transpose(2, 3)
    causal = torch.ones(prefix + tokens, prefix + tokens, dtype=torch.bool).tril()
    attention = logits.masked_fill(~causal, -torch.inf).softmax(-1)[:, :, prefix:]
    expected = attention[..., prefix:].sum(2)
    assert bucket.scores.dtype == torch.float32
    found = bucket.scores[:, :, :tokens].double()
    assert float((found - expected).abs().max() / expected.max()) < 0.01
    total = attention[..., prefix:].sum((2, 3))
    torch.testing.assert_close(found.sum(-1), total, rtol=2e-3, atol=0)


def test_equal_scores_keep_the_newer_token() -> None:
    policy = Policy.uniform(shape_of(1, 1), window=0, heavy=2, decay=0.0, stride=4, prefix=1)
    cache = CompressedCache(policy)
    same = torch.zeros(1, 1, 1, SIZE)
    for _ in range(1 + 4):
        keys, values = cache.update(same, same, 0)
        attend_through_cache(Module(1), same, keys, values, None, scaling=1.0)
    bucket = cache.layers[0].buckets[0]
    # Tokens 0..3 received 1/2+1/3+1/4+1/5, 1/3+1/4+1/5, 1/4+1/5, 1/5: the sums favour the old ones.
    assert sorted(bucket.positions[0, 0, :2].tolist()) == [0, 1]
    bucket.scores.zero_()
    bucket.live = 3
    bucket.positions[0, 0, :3] = torch.tensor([5, 9, 7])
    bucket._choose(20)
    assert sorted(bucket.positions[0, 0, :2].tolist()) == [7, 9]


def test_padding_of_the_prompt_is_never_seen() -> None:
    policy = Policy.uniform(shape_of(2, 2), window=torch.tensor([[3, 2]]), heavy=torch.tensor([[0, 2]]), stride=4, prefix=3)
    q, k, v = random_states(1, 2, 2, 2, 3 + TOKENS)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    mask[1, :, :, 0] = False  # the second prompt is one token shorter
    mask[1, :, 0, 0] = True  # as transformers does, the padding sees itself
    padded = run_cache(policy, q, k, v, 3, [1] * TOKENS, mask)
    in_chunks = run_cache(policy, q, k, v, 3, [4] * 4, mask)
    short = run_cache(policy, q[1:, :, 1:], k[1:, :, 1:], v[1:, :, 1:], 2, [1] * TOKENS)
    torch.testing.assert_close(padded[1:], short, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(in_chunks[1:], short, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_bytes_are_those_of_the_policy(stride: int) -> None:
    policy = Policy.uniform(
        shape_of(4, 2),
        window=torch.tensor([[3, 2]]),
        heavy=torch.tensor([[0, 5]]),
        anchor=torch.tensor([[0, 2]]),
        stride=stride,
        prefix=3,
    )
    cache = CompressedCache(policy)
    k = torch.zeros(4, 2, 3, SIZE)
    cache.update(k, k, 0)
    by_hand = 4 * ((3 + 3 + 1) + (3 + 2 + 2 + 5 + stride)) * 2 * SIZE * 4 + 4 * (7 + stride) * 8
    assert cache.nbytes() == by_hand
    assert CacheSpec(policy.shape, policy.prefix, batch=2, dtype="float32").bytes_of(policy) == by_hand


def test_an_observer_is_shown_what_the_oracle_sees(tiny: JanusModel) -> None:
    policy = Policy.uniform(
        tiny.shape,
        window=torch.tensor([[3, 1], [2, 0]]),
        heavy=torch.tensor([[0, 3], [4, 0]]),
        anchor=torch.tensor([[0, 2], [0, 1]]),
        stride=4,
        prefix=9,
    )
    prefix = tiny.tokenize(["dog", "a blue car on a red background"])
    tokens = torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(1))
    length, image = prefix.ids.shape[1], tiny.embed_tokens(tokens)
    mask = torch.cat([prefix.mask, prefix.mask.new_ones(2, 16)], 1)
    shown: list[tuple[int, list[Group]]] = []
    cache = CompressedCache(policy)
    with torch.inference_mode(), compressed(tiny, policy), observe(tiny.decoder, lambda n, g: shown.append((n, g))):
        tiny.forward(tiny.embed_prefix(prefix.ids), prefix.mask, cache)
        assert len(shown.pop()[1]) == 1
        shown.clear()
        for t in range(16):
            tiny.forward(image[:, t : t + 1], mask[:, : length + t + 1], cache)
    for layer, groups in shown:
        assert sorted(head for group in groups for head in group.heads) == [0, 1, 2, 3]
        for group in groups:
            t = int(group.query_positions[0]) - length
            kv_head = group.heads[0] // 2
            heavy, window = int(policy.heavy[layer, kv_head]), int(policy.window[layer, kv_head])
            assert group.visible is not None
            for b in range(2):
                at = group.key_positions.expand(2, -1, -1)[b, 0]
                seen = at[group.visible[b, 0, 0]].tolist()
                assert [p for p in seen if p < length] == prefix.mask[b].nonzero().flatten().tolist()
                kept = sorted(p - length for p in seen if p >= length)
                if heavy == 0:
                    anchor = int(policy.anchor[layer, kv_head])
                    assert kept == [p for p in range(t + 1) if p < anchor or t - p <= window]
                else:
                    assert kept[-1] == t
                    assert set(range(t - t % 4, t + 1)) <= set(kept)
                    assert len(kept) == len(set(kept))
