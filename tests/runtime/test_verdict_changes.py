"""What changes a model's numbers without exchanging a module is followed too, or goes the model's own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaMLP

from headscope.models.janus import JanusModel
from headscope.policy.policy import Policy
from headscope.runtime import generate
from headscope.runtime.decoders.llama_cpu import step_for
from headscope.runtime.sampling import Sampling
from tests.tiny import tiny_model


@contextmanager
def scaling(model: JanusModel) -> Iterator[None]:
    for layer in model.network.model.language_model.layers:
        layer.self_attn.scaling *= 3
    yield


@contextmanager
def one_scaling(model: JanusModel) -> Iterator[None]:
    model.network.model.language_model.layers[1].self_attn.scaling *= 3
    yield


@contextmanager
def rotary_scaling(model: JanusModel) -> Iterator[None]:
    model.network.model.language_model.rotary_emb.attention_scaling = 1.8
    yield


@contextmanager
def rotary_angles(model: JanusModel) -> Iterator[None]:
    rotary = model.network.model.language_model.rotary_emb
    rotary.inv_freq.data = rotary.inv_freq * 0.2
    yield


@contextmanager
def patched_class(model: JanusModel) -> Iterator[None]:
    plain = LlamaMLP.forward
    LlamaMLP.forward = lambda self, x: 3 * plain(self, x)
    try:
        yield
    finally:
        LlamaMLP.forward = plain


@contextmanager
def global_hook(model: JanusModel) -> Iterator[None]:
    handle = register_module_forward_hook(lambda module, _, output: 2 * output if isinstance(module, LlamaMLP) else None)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("change", [scaling, one_scaling, rotary_scaling, rotary_angles, patched_class, global_hook])
def test_numbers_that_changed_after_a_first_image_are_followed(change: Callable) -> None:
    model = tiny_model()
    everything = Policy.uniform(model.shape, window=15, stride=4, prefix=8)

    def tokens(policy: Policy | None) -> torch.Tensor:
        sampling = Sampling(guidance=3.0, temperature=0.0, seed=0)
        return generate(model, ["red apple", "dog"], sampling=sampling, policy=policy).tokens

    before = tokens(everything)
    assert torch.equal(before, tokens(None))
    assert step_for(model) is not None
    with change(model):
        expected = tokens(None)
        assert not torch.equal(expected, before)
        assert torch.equal(tokens(everything), expected)
    assert step_for(model) is not None or change is one_scaling


def test_under_autocast_the_models_own_way_is_taken() -> None:
    model = tiny_model()
    assert step_for(model) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert step_for(model) is None
