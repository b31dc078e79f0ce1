"""Janus-Pro-1B as a folder: its true configuration, cut to two layers and a small vocabulary, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from headscope.recipe.tokenizer import build_tokenizer, special_ids

# The template of the published checkpoint: roles, and text parts as they are.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'].capitalize() + '|>: ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)


def write_janus_pro(folder: Path, layers: int = 2, heads: int = 16, side: int = 24) -> Path:
    """Everything but depth, vocabulary (of words and image codes) and the vision tower as published: 2048 hidden, 16 heads of
    128, 24 x 24 tokens of 16 x 16 pixels. With fewer heads the hidden size shrinks too, with a smaller side the image."""
    hidden = 128 * heads
    tokenizer = build_tokenizer(["user", "assistant", "red apple", "blue car", "dog", "cat"], 4096)
    ids = special_ids(tokenizer)
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=16384,
            rms_norm_eps=1e-6,
            bos_token_id=ids["bos"],
            eos_token_id=ids["eos"],
            pad_token_id=ids["pad"],
        ),
        vision_config=JanusVisionConfig(
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16 * side,
            patch_size=16,
            mlp_ratio=1.0,
            projection_dim=hidden,
            depth=2,
            num_image_tokens=side * side,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=512,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=0,
            num_patches=side,
            projection_dim=hidden,
            image_token_embed_dim=hidden,
        ),
        image_token_id=ids["image"],
    )
    torch.manual_seed(0)
    network = JanusForConditionalGeneration(config).to(torch.bfloat16)
    network.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        guidance_scale=5.0,
        generation_kwargs={"boi_token_id": ids["boi"]},
    )
    network.save_pretrained(folder)
    tokenizer.chat_template = None  # the published checkpoint keeps it with the processor
    processor_of(tokenizer).save_pretrained(folder)
    return folder


def processor_of(tokenizer: PreTrainedTokenizerFast) -> JanusProcessor:
    """The model's processor; its image half is the one that needs no torchvision, wherever this transformers keeps it."""
    try:
        from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil as ImageHalf
    except ImportError:
        from transformers.models.janus.image_processing_janus import JanusImageProcessor as ImageHalf
    return JanusProcessor(image_processor=ImageHalf(), tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)
