"""The cache that keeps everything gives what transformers' own gives, bit by bit, out of memory that never moves."""

from __future__ import annotations

import pytest
import torch
from transformers import Cache, DynamicCache

from headscope.errors import CacheError
from headscope.models.janus import JanusModel
from headscope.runtime.plain import PlainCache
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car on a red background"]  # of unlike lengths: one row is padded


@torch.inference_mode()
def hidden_through(model: JanusModel, cache: Cache, lengths: list[int]) -> list[torch.Tensor]:
    """What the decoder gives for the prefix and then for chunks of image tokens of these lengths."""
    prefix = model.tokenize(PROMPTS)
    seen = prefix.mask
    found = [model.forward(model.embed_prefix(prefix.ids), seen, cache)]
    generator = torch.Generator().manual_seed(3)
    for length in lengths:
        tokens = torch.randint(0, 16, (len(PROMPTS), length), generator=generator)
        seen = torch.cat([seen, seen.new_ones(tokens.shape)], 1)
        found.append(model.forward(model.embed_tokens(tokens), seen, cache))
    return found


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("lengths", [[1] * 16, [4, 1, 7, 1, 3]])
def test_every_step_is_that_of_a_dynamic_cache(lengths: list[int], kind: str) -> None:
    model = tiny_model()
    model.network.to(getattr(torch, kind))
    room = model.tokenize(PROMPTS).ids.shape[1] + 16
    plain = hidden_through(model, PlainCache(model.shape.layers, room), lengths)
    dynamic = hidden_through(model, DynamicCache(), lengths)
    assert len(plain) == len(lengths) + 1
    assert all(torch.equal(one, other) for one, other in zip(plain, dynamic, strict=True))


@torch.inference_mode()
def test_its_memory_is_allocated_once_and_holds_no_more_than_asked(tiny: JanusModel) -> None:
    room = tiny.tokenize(PROMPTS).ids.shape[1] + 3
    cache = PlainCache(tiny.shape.layers, room)
    hidden_through(tiny, cache, [1])
    places = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    image = tiny.embed_tokens(torch.zeros(2, 2, dtype=torch.int64))
    tiny.forward(image, None, cache)
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers] == places
    assert cache.layers[0].keys.shape == (2, tiny.shape.kv_heads, room, tiny.shape.head_dim)
    assert cache.get_seq_length() == room
    with pytest.raises(CacheError, match=f"room for {room} tokens, not for {room + 1}"):
        tiny.forward(image[:, :1], None, cache)
