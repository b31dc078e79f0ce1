"""Prompts by head in the GPU's cache, in Triton's interpreter where there is no GPU: the CPU's cache is the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

pytest.importorskip("triton")

from headscope.geometry import Geometry
from headscope.policy import ModelShape, Policy
from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.prompt_ends import PromptEnds
from tests.runtime.test_flat import run_flat, run_reference

SIZE, TOKENS = 8, 12
SHAPE = ModelShape("toy", 1, 6, 3, SIZE, Geometry(3, 4), "a", "w")


def real_tokens(prefix: int, pads: list[int]) -> torch.Tensor:
    """bool [rows, P]."""
    return torch.arange(prefix) >= torch.tensor(pads)[:, None]


@given(st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_heads_take_of_a_prompt_what_they_keep(prefix: int, data: st.DataObject) -> None:
    pads = data.draw(st.lists(st.integers(0, prefix - 1), min_size=3, max_size=3))
    prompt = torch.tensor([data.draw(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3))])
    policy = Policy.uniform(SHAPE, window=1, heavy=torch.tensor([[0, 3, 2]]), anchor=1, prompt=prompt, stride=4, prefix=prefix)
    keys = torch.randn(3, 3, prefix, SIZE)
    padding = torch.zeros(3, dtype=torch.int32)
    layer = FlatLayer(policy, 0, keys, padding)
    padding.copy_(torch.tensor(pads))
    for start, stop in ((0, 2), (2, 3)):
        layer.fill_prefix(keys[start:stop], -keys[start:stop], start)
    ends = PromptEnds.of(prefix, real_tokens(prefix, pads)[:, None, None], keys.device)
    for head in range(3):
        expected = keys[:, head] if prompt[0, head] else ends.of_prompt(keys[:, head : head + 1])[:, 0]
        seen = real_tokens(prefix, pads) if prompt[0, head] else ~ends.hidden
        assert seen.sum(1).tolist() == [min(prefix - pad, prefix if prompt[0, head] else 2) for pad in pads]
        assert torch.equal(layer.prompt_of(layer.keys, head)[seen], expected[seen])
        assert torch.equal(layer.prompt_of(layer.values, head)[seen], -expected[seen])


def compare(policy: Policy, pads: list[int], seed: int, splits: int, tokens: int) -> None:
    prefix, rows, generator = policy.prefix, len(pads), torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, heads, prefix + TOKENS, SIZE, generator=generator) for heads in (6, 3, 3))
    causal = torch.ones(prefix, prefix, dtype=torch.bool).tril()
    mask = ((causal & real_tokens(prefix, pads)[:, None]) | torch.eye(prefix, dtype=torch.bool))[:, None]
    expected, cache = run_reference(policy, q, k, v, mask, tokens=tokens, prefix=prefix)
    found, layer = run_flat(policy, q, k, v, splits, pads, tokens=tokens, prefix=prefix)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert layer.nbytes() == cache.nbytes()


def test_what_is_dropped_is_never_seen_and_one_token_counts_once() -> None:
    """Rows of five, two and one valid tokens; a choice after four."""
    window, heavy, bits = torch.tensor([[2, 0, 3]]), torch.tensor([[0, 2, 0]]), torch.tensor([[16, 8, 4]])
    prompt = torch.tensor([[0, 0, 1]])
    policy = Policy.uniform(SHAPE, window=window, heavy=heavy, anchor=1, bits=bits, prompt=prompt, stride=4, prefix=5)
    compare(policy, [0, 3, 4], 1, 1, 5)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    def per_head(*some: int) -> torch.Tensor:
        return torch.tensor([draw(st.lists(st.sampled_from(some), min_size=3, max_size=3))])

    return Policy.uniform(
        SHAPE,
        window=per_head(0, 1, 2, 5, TOKENS - 1),
        heavy=per_head(0, 0, 1, 3, TOKENS),
        anchor=per_head(0, 0, 2),
        bits=per_head(16, 16, 8, 4),
        prompt=per_head(0, 0, 1),
        score=per_head(0, 0, 1),
        stride=draw(st.sampled_from([1, 2, 4, 12])),
        prefix=draw(st.integers(1, 6)),
    )


@pytest.mark.triton
@given(policies(), st.data(), st.integers(0, 2**16), st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_it_gives_what_the_cpu_gives(policy: Policy, data: st.DataObject, seed: int, splits: int) -> None:
    pads = data.draw(st.lists(st.integers(0, policy.prefix - 1), min_size=2, max_size=2))
    compare(policy, pads, seed, splits, TOKENS)
