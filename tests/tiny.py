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
)

from headscope.models.janus import JanusModel
from headscope.recipe.tokenizer import build_tokenizer, special_ids


def tiny_model(side: int = 4, layers: int = 2, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> JanusModel:
    """side x side tokens of 4 pixels, 16 codes, random weights large enough that attention is far from uniform."""
    tokenizer = build_tokenizer(["red apple", "blue car", "dog"], 64)
    ids = special_ids(tokenizer)
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=heads * 8,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=side * side + 64,
            bos_token_id=ids["bos"],
            eos_token_id=ids["eos"],
            pad_token_id=ids["pad"],
        ),
        vision_config=JanusVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=4 * side,
            patch_size=4,
            mlp_ratio=1.0,
            projection_dim=heads * 8,
            depth=1,
            num_image_tokens=side * side,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 1],
            num_res_blocks=0,
            num_patches=side,
            projection_dim=heads * 8,
            image_token_embed_dim=heads * 8,
        ),
        image_token_id=ids["image"],
    )
    torch.manual_seed(seed)
    network = JanusForConditionalGeneration(config).float()
    with torch.no_grad():
        for name, parameter in network.model.language_model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(std=0.35)
        network.model.generation_embeddings.weight.normal_(std=1.0)
        for parameter in network.model.generation_head.parameters():
            parameter.normal_(std=0.5)
    network.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        guidance_scale=3.0,
        generation_kwargs={"boi_token_id": ids["boi"]},
    )
    return JanusModel(network, tokenizer, "tiny")
