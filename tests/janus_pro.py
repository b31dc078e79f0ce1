"""Janus-Pro-1B as a folder: its true configuration, cut to two layers and a small vocabulary, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import JanusProcessor, PreTrainedTokenizerFast

from headscope.recipe.tokenizer import build_tokenizer
from tests.tiny import random_network

# The template of the published checkpoint: roles, and text parts as they are.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'].capitalize() + '|>: ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)


def write_janus_pro(folder: Path, heads: int = 16, side: int = 24) -> Path:
    """Everything but depth, vocabulary (of words and image codes) and the vision tower as published: 2048 hidden, 16 heads of
    128, 24 x 24 tokens of 16 x 16 pixels. With fewer heads the hidden size shrinks too, with a smaller side the image."""
    tokenizer = build_tokenizer(["user", "assistant", "red apple", "blue car", "dog", "cat"], 4096)
    network = random_network(
        tokenizer,
        side=side,
        positions=16384,
        heads=heads,
        kv_heads=heads,
        head_dim=128,
        inner=128 * heads * 11 // 4,
        patch=16,
        codes=512,
        guidance=5.0,
    ).to(torch.bfloat16)
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
