"""The fast step is the model's own forward, for every policy; where it can't be, the model's own forward is used."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from headscope.benchmarks import decoding
from headscope.benchmarks.shapes import RandomDecoder
from headscope.models.attention import observe
from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import CompressedCache, compressed, generate
from headscope.runtime.decoders import decoder_name, llama_cpu as llama
from headscope.runtime.decoders.llama_cpu import LlamaStep, step_for
from tests.runtime.test_everything_kept import PROMPTS
from tests.tiny import tiny_model

WINDOWS, HEAVY = torch.tensor([[5, 1], [0, 3]]), torch.tensor([[0, 3], [4, 0]])


def both(model: JanusModel, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [B, N, C] of random image tokens after padded prompts: by the model, and by the step."""
    prefix = model.tokenize(PROMPTS)  # of different length
    image = torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(1))
    embeds, words = model.embed_tokens(image), model.embed_prefix(prefix.ids)
    length = words.shape[1]
    step = step_for(model)
    assert isinstance(step, LlamaStep)
    found: list[list[torch.Tensor]] = [[], []]
    with torch.inference_mode(), compressed(model, policy):
        for fast in (0, 1):
            cache = CompressedCache(policy)
            model.forward(words, prefix.mask, cache)
            for t in range(16):
                mask = torch.cat([prefix.mask, prefix.mask.new_ones(2, t + 1)], 1)
                one = embeds[:, t : t + 1]
                found[fast].append(step(one[:, 0], length + t, cache) if fast else model.forward(one, mask, cache)[:, 0])
    return torch.stack(found[0], 1), torch.stack(found[1], 1)


@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("anchor", [0, 2])
def test_a_step_gives_the_hidden_states_of_the_model(tiny: JanusModel, stride: int, anchor: int) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, anchor=anchor, decay=0.9, stride=stride, prefix=12)
    own, fast = both(tiny, policy)
    torch.testing.assert_close(fast, own, rtol=1e-4, atol=1e-4)


def test_bfloat16_rounds_as_the_model_does() -> None:
    model = tiny_model()
    policy = Policy.uniform(model.shape, window=15, stride=4, prefix=12)
    exact = both(model, policy)[0]
    model.network.to(torch.bfloat16)
    own, fast = both(model, policy)
    assert (fast.float() - exact).abs().mean() <= 1.5 * (own.float() - exact).abs().mean()


def test_biases_are_added() -> None:
    model = RandomDecoder("tiny", torch.float32)
    for block in model.decoder.layers:  # type: ignore[union-attr]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(block.self_attn, name)  # type: ignore[union-attr]
            linear.bias = torch.nn.Parameter(torch.randn(linear.weight.shape[0]))
    assert step_for(model) is not None  # it was compared with the model


def test_who_is_watched_goes_the_models_own_way() -> None:
    model = tiny_model()
    seen: list[int] = []
    assert step_for(model) is not None
    with observe(model.decoder, lambda layer, groups: seen.append(layer)):
        assert step_for(model) is None
        generate(model, PROMPTS, 0, policy=Policy.uniform(model.shape, window=3, stride=4, prefix=12))
    assert len(seen) == 2 * 16
    hook = model.decoder.layers[0].register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    assert step_for(model) is None
    hook.remove()
    assert step_for(model) is not None
    before = model.decoder.config._attn_implementation
    model.decoder.config._attn_implementation = "eager"
    model.decoder(inputs_embeds=torch.randn(1, 3, 32), output_attentions=True)  # leaves hooks of transformers behind
    model.decoder.config._attn_implementation = before
    assert step_for(model) is not None


def test_a_step_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(llama, "_normed", lambda x, norm: x)
    assert step_for(model) is None
    other = tiny_model()
    other.decoder.config.hidden_act = "gelu"
    assert step_for(other) is None


def test_images_do_not_depend_on_who_steps(tiny: JanusModel) -> None:
    policy = Policy.uniform(tiny.shape, window=WINDOWS, heavy=HEAVY, stride=4, prefix=12)
    fast = generate(tiny, PROMPTS, 3, policy=policy).tokens
    assert decoder_name(tiny, policy) == "llama_cpu"
    assert torch.equal(fast, generate(tiny, PROMPTS, 3, policy=policy, decoder="transformers").tokens)


@pytest.mark.parametrize("name", ["full", "20", "20_semantic", "20_mixed"])
def test_a_step_allocates_nothing_that_grows(name: str) -> None:
    """What a step allocates is the same early and late, and far less than a layer's cache."""
    model = RandomDecoder("tiny", torch.float32)
    run, batch, width = decoding._Run(model, name, 16), 16, model.width
    allocated = []
    with torch.inference_mode():
        run.take(torch.randn(batch, run.prefix, width))
        before = places(run)
        for t in range(model.shape.geometry.tokens - 1):
            if t in (19, 59):  # late enough that every window is full, in the middle of a stride
                with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
                    run.one(torch.randn(batch, width))
                events = found.profiler.kineto_results.events()
                allocated.append(sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0))
            else:
                run.one(torch.randn(batch, width))
    assert allocated[1] <= 1.02 * allocated[0]
    assert places(run) == before


def places(run: decoding._Run) -> list[int]:
    """Where the cache's tensors lie: a copy would lie elsewhere."""
    return [tensor.data_ptr() for layer in run.cache.layers for bucket in layer.buckets for tensor in bucket.tensors()]
