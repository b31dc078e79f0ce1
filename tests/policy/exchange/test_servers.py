"""TensorRT-LLM and vLLM: sizes that hold what heads keep, in few pools; layers that are not quantised."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headscope.errors import PolicyMismatch
from headscope.policy import Policy, export_policy
from headscope.policy.exchange.tensorrt_llm import rounded_up
from tests.policy.exchange.policies import HEADS, TOKENS, policies, seen
from tests.policy.shapes import SHAPE


@given(policies())
@settings(max_examples=30, deadline=None)
def test_windows_hold_what_every_head_keeps_in_at_most_four_sizes(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy
) -> None:
    file = tmp_path_factory.mktemp("tensorrt") / "llm.json"
    written = export_policy(policy, file, to="tensorrt-llm")
    config = json.loads(file.read_text(encoding="utf-8"))["kv_cache_config"]
    sizes, sink, length = config["max_attention_window"], config["sink_token_length"], policy.prefix + TOKENS
    assert len(sizes) == SHAPE.layers
    assert len(set(sizes)) <= 4
    assert max(sizes) <= length
    for layer, head in itertools.product(range(SHAPE.layers), range(SHAPE.kv_heads)):
        assert sizes[layer] >= min(int(policy.slots()[layer, head]), length)
        if policy.window[layer, head] + policy.heavy[layer, head] >= TOKENS - 1:
            assert sizes[layer] == length
        elif policy.heavy[layer, head] == 0:
            for t in range(TOKENS):
                place = policy.prefix + t
                there = {s for s in range(place + 1) if s < sink or place - s < sizes[layer] - sink or sizes[layer] == length}
                assert seen(policy, layer, head, t) <= there
    number = 4 if policy.limit is not None and policy.limit.spec.dtype == "float32" else 2
    counted = written.notes["bytes"]["at_most"]
    assert counted >= sum(sizes) * SHAPE.kv_heads * 2 * 2 * SHAPE.head_dim * number
    assert written.notes_path.name == "llm.headscope.json"
    assert json.loads(written.notes_path.read_text(encoding="utf-8")) == written.notes


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_sizes_are_rounded_up_by_as_little_as_can_be(sizes: list[int], most: int) -> None:
    found = rounded_up(sizes, most)
    assert all(there >= here for here, there in zip(sizes, found, strict=True))
    assert len(set(found)) <= most
    choices = itertools.combinations(sorted(set(sizes)), min(most, len(set(sizes))))
    assert sum(found) == min(
        sum(min(size for size in some if size >= one) for one in sizes) for some in choices if max(some) == max(sizes)
    )


def test_layers_with_a_head_of_sixteen_bits_are_skipped(tmp_path: Path) -> None:
    bits = torch.tensor([[8, 8, 4, 8], [8, 16, 8, 4], [8, 8, 8, 8]], dtype=torch.uint8)
    policy = Policy.uniform(SHAPE, window=TOKENS - 1, stride=1, prefix=12).replace(bits=bits)
    notes = export_policy(policy, tmp_path / "vllm.yaml", to="vllm").notes
    assert json.loads((tmp_path / "vllm.yaml").read_text(encoding="utf-8")) == {
        "kv_cache_dtype": "fp8",
        "kv_cache_dtype_skip_layers": ["1"],
    }
    # 12 + 36 tokens fill three pages; 2 streams, keys and values, 4 heads of 8 numbers, layers of 1, 2 and 1 bytes a number.
    assert notes["bytes"]["at_most"] == 48 * 2 * 2 * 4 * 8 * (1 + 2 + 1)
    assert [sentence for sentence in notes["lost"] if sentence.startswith("bits")] == [
        "bits: 3 KV heads of fewer bits lie in layers with a head of 16 and keep 16",
        "bits: 1 KV head of 4 bits keep 8, in fp8",
    ]


def test_a_policy_without_a_quantised_layer_says_nothing_to_vllm(tmp_path: Path) -> None:
    bits = torch.full(HEADS, 8, dtype=torch.uint8)
    bits[:, 0] = 16
    policy = Policy.uniform(SHAPE, window=3, stride=1, prefix=5).replace(bits=bits)
    with pytest.raises(PolicyMismatch, match="every layer has a KV head of 16 bits"):
        export_policy(policy, tmp_path / "vllm.json", to="vllm")
    assert list(tmp_path.iterdir()) == []
