"""Folders as DeepSeek publishes Janus: its names of tensors, its settings, a byte-level tokenizer whose class misleads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from headscope.recipe.tokenizer import build_tokenizer
from tests.tiny import random_network

BOS, EOS, PAD = (
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>",
)
BEGIN = "<begin_of_image>"
SPECIAL = [BOS, EOS, PAD, "<|User|>", "<|Assistant|>", "<image_placeholder>", BEGIN, "<end_of_image>"]
TOWER = "vision_model.vision_tower."

# From transformers' names to DeepSeek's, one after the other.
RENAMES = [
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.vision_head\.", "gen_head.vision_head."),
    (r"^model\.aligner\.fc1\.", "aligner.layers.0."),
    (r"^model\.vision_model\.", "vision_model.vision_tower."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"(gen_vision_model\.encoder\.)down\.", r"\1conv_blocks."),
    (r"(gen_vision_model\.decoder\.)up\.", r"\1conv_blocks."),
    (r"(gen_vision_model\..*\.)block\.", r"\1res."),
    (r"(gen_vision_model\..*\.mid)\.block_1\.", r"\1.0."),
    (r"(gen_vision_model\..*\.mid)\.attn_1\.", r"\1.1."),
    (r"(gen_vision_model\..*\.mid)\.block_2\.", r"\1.2."),
]


def renamed(name: str) -> str:
    for ours, theirs in RENAMES:
        name = re.sub(ours, theirs, name)
    return name


def original_tensors(network: JanusForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Everything that such a folder holds: also what looks at images, and the count of used codes."""
    tensors = {renamed(name): tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    places = tensors.pop(f"{TOWER}embeddings.position_embedding.weight")
    tensors[f"{TOWER}pos_embed"] = places[None]
    return {**tensors, "gen_vision_model.quantize.codebook_used": torch.zeros(65536)}


def original_settings(network: JanusForConditionalGeneration) -> dict[str, Any]:
    """config.json of DeepSeek's, with the sizes of `network`; what equals the Llama of 2024 is left out."""
    config: Any = network.config
    text, vq, width = config.text_config, config.vq_config, config.text_config.hidden_size
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    kept = {name: getattr(text, name) for name in (*sizes, "vocab_size", "max_position_embeddings")}
    codes = {"image_token_size": vq.num_embeddings}
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "aligner_config": {"cls": "MlpProjector", "params": {"depth": 2, "input_dim": 1024, "n_embed": width}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": {"depth": 2, "input_dim": vq.embed_dim, "n_embed": width}},
        "gen_head_config": {"cls": "vision_head", "params": {**codes, "image_token_embed": width, "n_embed": width}},
        "gen_vision_config": {"cls": "VQ-16", "params": {**codes, "n_embed": vq.embed_dim}},
        "language_config": {
            "model_type": "llama",
            "_attn_implementation": "flash_attention_2",
            "torch_dtype": "bfloat16",
            **kept,
        },
        "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": config.vision_config.image_size}},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
    }


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], kind: str = "bin", parts: int = 1) -> None:
    """One file, or `parts` of them with their index."""
    stem = {"bin": "pytorch_model", "safetensors": "model"}[kind]
    names, where = sorted(tensors), {}
    for part in range(parts):
        file = f"{stem}.{kind}" if parts == 1 else f"{stem}-{part + 1:05}-of-{parts:05}.{kind}"
        held = {name: tensors[name] for name in names[part::parts]}
        where |= dict.fromkeys(held, file)
        if kind == "bin":
            torch.save(held, folder / file)
        else:
            save_file(held, folder / file, {"format": "pt"})
    if parts > 1:
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))


def byte_tokenizer() -> Tokenizer:
    """Bytes in pairs, as DeepSeek's; the file itself puts nothing before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer: Any = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["a red apple and a blue car, a dog on a red background"], trainer)
    return tokenizer


def write_byte_tokenizer(folder: Path) -> Tokenizer:
    """The three small files of DeepSeek's folders, and tokenizer.json."""
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": {"content": BOS, "lstrip": False}, "eos_token": EOS, "pad_token": EOS}
    settings = {**named, "add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast", "model_max_length": 16384}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}))
    style = {"processor_class": "VLChatProcessor", "sft_format": "deepseek", "num_image_tokens": 576}
    (folder / "processor_config.json").write_text(json.dumps(style))
    return tokenizer


def write_word_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A tokenizer of `build_tokenizer`, whose prompts are typed as they are."""
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    style = {"sft_format": "plain", "pad_tag": tokenizer.pad_token, "image_start_tag": BEGIN}
    (folder / "processor_config.json").write_text(json.dumps(style))


def true_network(side: int = 4) -> JanusForConditionalGeneration:
    """A random Janus of the published structure: VQ-16's five levels with attention in the last, grouped heads beside."""
    config: Any = random_network(build_tokenizer([], 64), side=side, positions=4096, patch=16, codes=64).config
    config.text_config.vocab_size = byte_tokenizer().get_vocab_size()
    config.vq_config.update({"channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "latent_channels": 64})
    torch.manual_seed(1)
    network: Any = JanusForConditionalGeneration(JanusConfig(**config.to_dict())).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("model.language_model.") and parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(std=0.35)
        network.model.generation_embeddings.weight.normal_()
        for parameter in network.model.generation_head.parameters():
            parameter.normal_(std=0.5)
    return network


def write_original(
    folder: Path,
    network: JanusForConditionalGeneration,
    kind: str = "bin",
    parts: int = 1,
    words: PreTrainedTokenizerFast | None = None,
) -> Path:
    """The network as a folder in DeepSeek's format, with a tokenizer of bytes unless one of words is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(original_settings(network)))
    write_weights(folder, original_tensors(network), kind, parts)
    if words is None:
        write_byte_tokenizer(folder)
    else:
        write_word_tokenizer(folder, words)
    return folder
