"""With everything kept, the runtime is the model: the same tokens as its own `generate()`, the same logits."""

from __future__ import annotations

import pytest
import torch

from headscope.models import ImageModel
from headscope.models.cache_name import cache_name
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, Sampling, compressed, generate
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car on a red background"]
GREEDY = Sampling(guidance=3.0, temperature=0.0)


def everything(model: ImageModel, kind: str) -> Policy:
    last = model.shape.geometry.tokens - 1
    half = last // 2
    mixed = torch.arange(model.shape.kv_heads).expand(model.shape.layers, -1) % 3
    window = {
        "window": last,
        "half": half,
        "heavy": 0,
        "mixed": torch.tensor([last, half, 0])[mixed],
    }[kind]
    heavy = {
        "window": 0,
        "half": last - half,
        "heavy": last + 1,
        "mixed": torch.tensor([0, last - half, last + 1])[mixed],
    }[kind]
    row = model.shape.geometry.row_length
    return Policy.uniform(model.shape, window=window, heavy=heavy, stride=row if kind != "half" else 1, prefix=12)


def own_tokens(model: JanusModel, prompts: list[str], guidance: float) -> torch.Tensor:
    prefix = model.tokenize(prompts)
    return model.network.generate(
        prefix.ids,
        attention_mask=prefix.mask,
        generation_mode="image",
        do_sample=False,
        guidance_scale=guidance,
        max_length=prefix.ids.shape[1] + model.shape.geometry.tokens,
    )


@pytest.mark.parametrize("kind", ["window", "half", "heavy", "mixed"])
def test_greedy_tokens_are_those_of_generate(tiny: JanusModel, kind: str) -> None:
    generated = generate(tiny, PROMPTS, 0, policy=everything(tiny, kind), sampling=GREEDY)
    expected = own_tokens(tiny, PROMPTS, 3.0)
    assert len(expected.unique()) > 3  # a constant image would prove little
    assert torch.equal(generated.tokens.long(), expected)


def test_our_loop_without_a_policy_gives_the_tokens_of_generate(tiny: JanusModel) -> None:
    generated = generate(tiny, PROMPTS, sampling=GREEDY)
    assert torch.equal(generated.tokens.long(), own_tokens(tiny, PROMPTS, 3.0))


def test_the_bundled_model_draws_the_tokens_of_generate(stickers: JanusModel) -> None:
    prompts = ["red apple, noto style", "cat face, twemoji style, blue background"]
    generated = generate(stickers, prompts, 0, policy=everything(stickers, "mixed"), sampling=GREEDY)
    assert torch.equal(generated.tokens.long(), own_tokens(stickers, prompts, 3.0))


def logits_through(model: ImageModel, policy: Policy | None, tokens: torch.Tensor, chunk: int) -> torch.Tensor:
    prefix = model.tokenize(PROMPTS)
    embeds, mask = model.embed_prefix(prefix.ids), prefix.mask
    image = model.embed_tokens(tokens)
    whole = torch.cat([mask, mask.new_ones(tokens.shape)], 1)
    with torch.inference_mode():
        if policy is None:
            return model.logits(model.forward(torch.cat([embeds, image], 1), whole))[:, embeds.shape[1] :]
        cache = CompressedCache(policy)
        parts = []
        with compressed(model, policy):
            model.forward(embeds, mask, cache)
            for start in range(0, tokens.shape[1], chunk):
                upto = embeds.shape[1] + start + chunk
                parts.append(model.logits(model.forward(image[:, start : start + chunk], whole[:, :upto], cache)))
        return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", ["window", "half", "heavy", "mixed"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_logits_are_those_of_the_model(tiny: JanusModel, kind: str, chunk: int) -> None:
    tokens = torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(5))
    if kind == "half" and chunk > 1:
        chunk = 1  # it chooses at every token
    found = logits_through(tiny, everything(tiny, kind), tokens, chunk)
    expected = logits_through(tiny, None, tokens, 0)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_bfloat16_is_as_near_as_the_models_own_two_attentions() -> None:
    model = tiny_model()
    tokens = torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(5))
    model.network.to(torch.bfloat16)
    sdpa = logits_through(model, None, tokens, 0).float()
    found = logits_through(model, everything(model, "mixed"), tokens, 1).float()
    model.decoder.config._attn_implementation = "eager"
    eager = logits_through(model, None, tokens, 0).float()
    assert (found - sdpa).abs().mean() <= 3 * (eager - sdpa).abs().mean()


def test_the_cache_works_inside_the_models_own_generate(tiny: JanusModel) -> None:
    policy = everything(tiny, "mixed")
    prefix = tiny.tokenize(PROMPTS)
    with compressed(tiny, policy):
        tokens = tiny.network.generate(
            prefix.ids,
            attention_mask=prefix.mask,
            generation_mode="image",
            do_sample=False,
            guidance_scale=3.0,
            **{cache_name(): CompressedCache(policy)},
            max_length=prefix.ids.shape[1] + 16,
        )
    assert torch.equal(tokens, own_tokens(tiny, PROMPTS, 3.0))
