"""A Janus folder in DeepSeek's format is the same model as in transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, JanusForConditionalGeneration

from headscope.errors import ModelError
from headscope.models import load_model
from headscope.models.janus import JanusModel
from headscope.models.janus_original import _configuration, stored_name
from headscope.policy import CacheSpec, Policy, load_policy, save_policy
from headscope.runtime import Sampling, generate
from tests.cli.command import headscope
from tests.janus_original import BEGIN, BOS, PAD, true_network, write_original

PROMPTS = ["a red apple", "dog", "a blue car on a red background", "a dog and a car"]
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' own network."""
    return true_network()


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in DeepSeek's format, in three parts."""
    return write_original(tmp_path_factory.mktemp("deepseek") / "Janus-Toy", reference, parts=3)


@pytest.fixture(scope="module")
def model(folder: Path) -> JanusModel:
    return load_model(str(folder), device="cpu")  # type: ignore[return-value]


def prompt_ids(folder: Path, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask as DeepSeek's script has them, left padded, by nothing but the tokenizer's file."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(f"{BOS}<|User|>: {prompt}\n\n<|Assistant|>:{BEGIN}").ids for prompt in prompts]
    length, pad = max(map(len, rows)), tokenizer.token_to_id(PAD)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])


def by_generate(network: Any, ids: torch.Tensor, mask: torch.Tensor, guidance: float) -> torch.Tensor:
    """Greedy tokens of transformers' `generate`."""
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    network.generation_config = GenerationConfig(**ends, generation_kwargs={"boi_token_id": 6})
    options = {"generation_mode": "image", "do_sample": False, "guidance_scale": guidance}
    return network.generate(ids, attention_mask=mask, max_length=ids.shape[1] + 16, **options)


@torch.inference_mode()
def by_hand(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Greedy tokens without guidance, each by a forward pass over everything: `generate` has no such mode."""
    inner, tokens = network.model, ids.new_zeros(len(ids), 0)
    for _ in range(16):
        embeds = torch.cat([inner.language_model.embed_tokens(ids), network.prepare_embeddings_for_image_generation(tokens)], 1)
        whole = torch.cat([mask, mask.new_ones(tokens.shape)], 1)
        hidden = inner.language_model(inputs_embeds=embeds, attention_mask=whole).last_hidden_state[:, -1]
        tokens = torch.cat([tokens, inner.generation_head(hidden).argmax(-1, keepdim=True)], 1)
    return tokens


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "four"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_tokens_are_those_of_transformers(
    folder: Path, reference: Any, model: JanusModel, prompts: list[str], guidance: float
) -> None:
    ids, mask = prompt_ids(folder, prompts)
    expected = by_hand(reference, ids, mask) if guidance == 1 else by_generate(reference, ids, mask, guidance)
    assert len(expected.unique()) > 3
    greedy = Sampling(guidance=guidance, temperature=0.0)
    assert torch.equal(generate(model, prompts, sampling=greedy).tokens.long(), expected)
    heavy = torch.tensor([[15, 8], [0, 16]])
    everything = Policy.uniform(model.shape, window=15 - heavy.clamp(max=15), heavy=heavy, stride=4, prefix=ids.shape[1])
    assert everything.keeps_everything
    assert torch.equal(generate(model, prompts, policy=everything, sampling=greedy).tokens.long(), expected)


def test_prompts_are_those_of_the_authors_script(folder: Path, model: JanusModel) -> None:
    prefix, (ids, mask) = model.tokenize(PROMPTS), prompt_ids(folder, PROMPTS)
    assert torch.equal(prefix.ids, ids)
    assert torch.equal(prefix.mask, mask)
    alone = model.tokenize(["  dog "])
    assert alone.texts == ["<|User|>: dog\n\n<|Assistant|>:<begin_of_image>"]
    assert alone.unconditional_ids[0].tolist() == [0, *[2] * (alone.ids.shape[1] - 2), 6]
    assert alone.unconditional_mask.all()
    assert (model.guidance, model.temperature, model.top_k) == (5.0, 1.0, None)


def test_images_are_those_of_transformers(reference: Any, model: JanusModel) -> None:
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = reference.decode_image_tokens(tokens)
        found = model.network.decode_image_tokens(tokens)
    assert torch.equal(found, expected)
    assert model.to_images(tokens).shape == (2, 64, 64, 3)


def test_only_what_generates_is_loaded(folder: Path, reference: Any, model: JanusModel) -> None:
    held = {name for name, _ in model.network.named_parameters()}
    assert held == {
        name
        for name, _ in reference.named_parameters()
        if not name.startswith(
            ("lm_head", "model.vision_model", "model.aligner", "model.vqmodel.encoder", "model.vqmodel.quant_conv")
        )
    }
    half = load_model(str(folder), device="cpu", dtype="bfloat16")
    network: Any = half.network  # type: ignore[attr-defined]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    angles = [one.model.language_model.rotary_emb.inv_freq for one in (network, reference)]
    assert torch.equal(*angles)
    assert half.shape.weights == model.shape.weights
    network.to(torch.float32)
    with pytest.raises(ModelError, match=r"the head that writes text: not loaded"):
        network(input_ids=torch.tensor([[0, 5]]))


@pytest.mark.parametrize(("kind", "parts"), [("safetensors", 1), ("safetensors", 2), ("bin", 1)])
def test_all_formats_are_one_model(reference: Any, model: JanusModel, tmp_path: Path, kind: str, parts: int) -> None:
    other = load_model(str(write_original(tmp_path / "other", reference, kind, parts)), device="cpu")
    assert (other.shape.weights, other.shape.architecture) == (model.shape.weights, model.shape.architecture)
    whole = JanusModel(reference, model.tokenizer, "transformers")
    assert (whole.shape.weights, whole.shape.architecture) == (model.shape.weights, model.shape.architecture)


def test_the_bundled_model_is_itself_in_their_layout(stickers: JanusModel, tmp_path: Path) -> None:
    network: Any = JanusForConditionalGeneration.from_pretrained(str(bundled()), dtype=torch.bfloat16)
    folder = write_original(tmp_path / "stickers", network, parts=2, words=stickers.tokenizer)
    loaded = load_model(str(folder), device="cpu")
    assert (loaded.shape.weights, loaded.shape.architecture) == (stickers.shape.weights, stickers.shape.architecture)
    prompts, sampling = ["red apple, noto style", "dog"], Sampling(guidance=2.0, temperature=0.7)
    policy = Policy.uniform(stickers.shape, window=16, heavy=16, stride=16, prefix=12)
    saved = save_policy(policy, tmp_path / "policy.safetensors")
    theirs = load_policy(saved, loaded.shape)
    expected = generate(stickers, prompts, 3, policy=policy, sampling=sampling).tokens
    assert torch.equal(generate(loaded, prompts, 3, policy=theirs, sampling=sampling).tokens, expected)
    assert load_policy(save_policy(theirs, tmp_path / "back.safetensors"), stickers.shape).shape.weights == policy.shape.weights


def bundled() -> Path:
    from headscope.models import bundled_folder

    found = bundled_folder("stickers")
    assert found is not None
    return found


# Beginnings in transformers and in DeepSeek's files, and ends that both share.
NAMES = [
    ("model.language_model.layers.7.", "language_model.model.layers.7.", "self_attn.q_proj.weight"),
    ("model.language_model.", "language_model.model.", "embed_tokens.weight"),
    ("model.generation_embeddings.", "gen_embed.", "weight"),
    ("model.generation_aligner.fc1.", "gen_aligner.layers.0.", "bias"),
    ("model.generation_aligner.hidden_layers.0.", "gen_aligner.layers.2.", "weight"),
    ("model.generation_head.proj_out.", "gen_head.output_mlp_projector.", "weight"),
    ("model.generation_head.", "gen_head.", "vision_head.bias"),
    ("model.vqmodel.", "gen_vision_model.", "quantize.embedding.weight"),
    ("model.vqmodel.", "gen_vision_model.", "post_quant_conv.weight"),
    ("model.vqmodel.decoder.mid.block_1.", "gen_vision_model.decoder.mid.0.", "norm1.weight"),
    ("model.vqmodel.decoder.mid.attn_1.", "gen_vision_model.decoder.mid.1.", "proj_out.bias"),
    ("model.vqmodel.decoder.mid.block_2.", "gen_vision_model.decoder.mid.2.", "conv2.weight"),
    ("model.vqmodel.decoder.up.1.block.0.", "gen_vision_model.decoder.conv_blocks.1.res.0.", "nin_shortcut.bias"),
    ("model.vqmodel.decoder.up.0.", "gen_vision_model.decoder.conv_blocks.0.", "attn.1.q.weight"),
    ("model.vqmodel.decoder.up.3.", "gen_vision_model.decoder.conv_blocks.3.", "upsample.conv.bias"),
]


@pytest.mark.parametrize(("ours", "theirs", "end"), NAMES)
def test_names_are_the_authors(ours: str, theirs: str, end: str) -> None:
    assert stored_name(ours + end) == theirs + end


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (dict(zip(SIZES, (2048, 5632, 24, 16), strict=True)), (24, 16, 16, 128, 5632)),
        ({"num_hidden_layers": 30}, (30, 32, 32, 128, 11008)),
    ],
    ids=["1B", "7B"],
)
def test_what_their_configuration_leaves_out_is_the_llama_of_2024(language: dict, expected: tuple, model: JanusModel) -> None:
    width = language.get("hidden_size", 4096)
    shared = {"vocab_size": 102400, "max_position_embeddings": 16384, "_attn_implementation": "flash_attention_2"}
    settings = {
        "language_config": {**language, **shared},
        "vision_config": {"params": {"image_size": 384}},
        "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": {"params": {"depth": 2, "n_embed": width}},
        "gen_head_config": {"params": {"image_token_embed": width}},
    }
    config: Any = _configuration(settings, {}, model.tokenizer)
    text, vq = config.text_config, config.vq_config
    found = (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim, text.intermediate_size)
    assert found == expected
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (1e-6, 10000.0)
    assert text._attn_implementation != "flash_attention_2"
    assert (vq.num_patches, vq.num_embeddings, list(vq.channel_multiplier)) == (24, 16384, [1, 1, 2, 2, 4])


def test_a_fifth_of_the_cache_goes_through_every_step(tmp_path: Path, capsys, monkeypatch) -> None:
    folder, prompts, out = write_original(tmp_path / "model", true_network(8)), tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a red apple\na blue car\n")
    options = ("--prompts", prompts, "--quick", "--trials", 1, "--keep", "20%")
    ended = headscope(capsys, monkeypatch, "run", folder, "--out", out, *options)
    assert ended.status == 0, ended.err
    assert (out / "report.html").exists()
    policy = load_policy(out / "policy.safetensors", load_model(str(folder)).shape)
    assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= 0.20
