"""Observing attention shows the true queries and keys and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from headscope.errors import CacheError
from headscope.models.attention import observe
from headscope.models.groups import Group
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, compressed
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car on a red background"]


def inputs(model: JanusModel) -> tuple[torch.Tensor, torch.Tensor]:
    prefix = model.tokenize(PROMPTS)
    tokens = torch.randint(0, 16, (2, 15), generator=torch.Generator().manual_seed(2))
    embeds = torch.cat([model.embed_prefix(prefix.ids), model.embed_tokens(tokens)], 1)
    return embeds, torch.cat([prefix.mask, prefix.mask.new_ones(tokens.shape)], 1)


def attention_of(group: Group) -> torch.Tensor:
    """The definition in Group's docstring, as a map [B, hq, T, S]."""
    k = group.k.repeat_interleave(group.q.shape[1] // group.k.shape[1], 1)
    logits = group.q @ k.transpose(2, 3) * group.scaling
    key, query = group.key_positions[:, :, None], group.query_positions[None, None, :, None]
    seen = (key >= 0) & (key <= query)
    if group.visible is not None:
        seen = seen & group.visible
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_observed_logits_are_bit_identical(tiny: JanusModel, attention: str) -> None:
    embeds, mask = inputs(tiny)
    tiny.decoder.config._attn_implementation = attention
    plain = tiny.logits(tiny.forward(embeds, mask))
    layers = []
    with observe(tiny.decoder, lambda layer, groups: layers.append((layer, groups))):
        watched = tiny.logits(tiny.forward(embeds, mask))
    assert torch.equal(plain, watched)
    assert [layer for layer, _ in layers] == [0, 1]
    assert tiny.decoder.config._attn_implementation == attention
    tiny.decoder.config._attn_implementation = "sdpa"


@torch.inference_mode()
def test_groups_give_the_models_own_maps(tiny: JanusModel) -> None:
    embeds, mask = inputs(tiny)
    seen: dict[int, Group] = {}
    with observe(tiny.decoder, lambda layer, groups: seen.update({layer: groups[0]})):
        tiny.forward(embeds, mask)
    tiny.decoder.config._attn_implementation = "eager"
    maps = tiny.decoder(inputs_embeds=embeds, attention_mask=mask, output_attentions=True).attentions
    tiny.decoder.config._attn_implementation = "sdpa"
    for layer, expected in enumerate(maps):
        found = attention_of(seen[layer])
        real = mask.bool()[:, None, :, None].expand_as(expected)  # what padding looks at is nobody's affair
        torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_positions_are_right_with_a_static_cache(tiny: JanusModel) -> None:
    embeds, mask = inputs(tiny)
    cache = StaticCache(config=tiny.decoder.config, max_cache_len=64)
    positions = []
    with observe(tiny.decoder, lambda layer, groups: positions.append(groups[0].query_positions.tolist())):
        tiny.forward(embeds[:, :10], mask[:, :10], cache)
        tiny.forward(embeds[:, 10:11], mask[:, :11], cache)
    assert positions[0][-1] == 9
    assert positions[2] == [10]


def test_the_decoder_is_as_before_after_an_exception(tiny: JanusModel) -> None:
    embeds, mask = inputs(tiny)

    def fail(layer: int, groups: list[Group]) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), observe(tiny.decoder, fail):
        tiny.forward(embeds, mask)
    assert tiny.decoder.config._attn_implementation == "sdpa"
    calls = []
    with observe(tiny.decoder, lambda layer, groups: calls.append(layer)):
        tiny.forward(embeds, mask)
    assert calls == [0, 1]


def test_observers_nest(tiny: JanusModel) -> None:
    embeds, mask = inputs(tiny)
    outer, inner = [], []
    with observe(tiny.decoder, lambda layer, groups: outer.append(layer)):
        with observe(tiny.decoder, lambda layer, groups: inner.append(layer)):
            tiny.forward(embeds, mask)
        tiny.forward(embeds, mask)
    assert (outer, inner) == ([0, 1, 0, 1], [0, 1])


def test_the_cache_without_its_attention_is_refused(tiny: JanusModel) -> None:
    policy = Policy.uniform(tiny.shape, window=3, stride=1, prefix=8)
    embeds, mask = inputs(tiny)
    cache = CompressedCache(policy)
    tiny.forward(embeds[:, :8], mask[:, :8], cache)
    with pytest.raises(CacheError, match=r"with headscope\.compressed"):
        tiny.forward(embeds[:, 8:9], mask[:, :9], cache)


def test_another_cache_inside_the_block_is_refused(tiny: JanusModel) -> None:
    from transformers import DynamicCache

    policy = Policy.uniform(tiny.shape, window=3, stride=1, prefix=8)
    embeds, mask = inputs(tiny)
    cache = DynamicCache()
    with compressed(tiny, policy):
        tiny.forward(embeds[:, :8], mask[:, :8], cache)
        with pytest.raises(CacheError, match="CompressedCache"):
            tiny.forward(embeds[:, 8:9], mask[:, :9], cache)


def test_a_copy_that_was_made_inside_a_block_attends_as_usual() -> None:
    model = tiny_model()
    policy = Policy.uniform(model.shape, window=3, stride=1, prefix=8)
    embeds, mask = inputs(model)
    with torch.inference_mode():
        expected = model.forward(embeds, mask)
        with compressed(model, policy):
            copied = copy.deepcopy(model)
        cache = DynamicCache()
        parts = [copied.forward(embeds[:, :9], mask[:, :9], cache), copied.forward(embeds[:, 9:], mask, cache)]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 8:], expected[:, 8:], rtol=1e-4, atol=1e-4)
