"""A small random Janus, grouped-query attention included, for what needs no trained weights."""

from __future__ import annotations

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from headscope.models.janus import JanusModel
from headscope.recipe.tokenizer import build_tokenizer, special_ids


def tiny_model(side: int = 4) -> JanusModel:
    """side x side tokens of 4 x 4 pixels, 16 codes, random weights large enough that attention is far from uniform."""
    tokenizer = build_tokenizer(["red apple", "blue car", "dog"], 64)
    network = random_network(tokenizer, side=side, positions=side * side + 64)
    with torch.no_grad():
        for name, parameter in network.model.language_model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(std=0.35)
        network.model.generation_embeddings.weight.normal_(std=1.0)
        for parameter in network.model.generation_head.parameters():
            parameter.normal_(std=0.5)
    return JanusModel(network, tokenizer, "tiny")


def random_network(
    tokenizer: PreTrainedTokenizerFast,
    *,
    side: int,
    positions: int,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    inner: int = 32,
    patch: int = 4,
    codes: int = 16,
    guidance: float = 3.0,
) -> JanusForConditionalGeneration:
    """A Janus with the weights that transformers gives it after seed 0; its vision tower is as small as can be.

    Args:
        tokenizer: one of `build_tokenizer`; vocabulary and special tokens are its own.
        side: tokens of a row of an image, and rows.
        positions: tokens of a prompt and an image together, at most.
        layers: layers of the decoder.
        heads: query heads of a layer.
        kv_heads: KV heads of a layer.
        head_dim: numbers of a head.
        inner: width of the MLP.
        patch: side of a token in pixels, a power of two.
        codes: codes that a token of an image can be.
        guidance: guidance weight where none is asked for.
    """
    ids, width = special_ids(tokenizer), heads * head_dim
    ends = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=positions,
            **ends,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=patch * side,
            patch_size=patch,
            mlp_ratio=1.0,
            projection_dim=width,
            depth=1,
            num_image_tokens=side * side,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1] * patch.bit_length(),  # each but the first halves the side
            num_res_blocks=0,
            num_patches=side,
            projection_dim=width,
            image_token_embed_dim=width,
        ),
        image_token_id=ids["image"],
    )
    torch.manual_seed(0)
    network = JanusForConditionalGeneration(config)
    network.generation_config = GenerationConfig(
        guidance_scale=guidance, generation_kwargs={"boi_token_id": ids["boi"]}, **ends
    )
    return network
