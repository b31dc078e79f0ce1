"""Shapes of published models, known without their files: what a policy that is made before a download needs."""

from __future__ import annotations

from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from headscope.models.janus import janus_shape
from headscope.policy import ModelShape

# Layers, heads (each with keys and values of its own), hidden size and width of the MLP, of their config.json.
_JANUS_PRO = {"Janus-Pro-1B": (24, 16, 2048, 5632), "Janus-Pro-7B": (30, 32, 4096, 11008)}
_OWNERS = ("deepseek-community", "deepseek-ai")


def published_shape(name: str) -> ModelShape | None:
    """The shape of a model that its publisher describes, `weights` "" as they are not here; None for any other name.

    Both formats of a model, transformers' and DeepSeek's, are one model and have one shape.

    Args:
        name: a hub id, such as "deepseek-community/Janus-Pro-1B".
    """
    owner, _, model = name.partition("/")
    if owner not in _OWNERS or model not in _JANUS_PRO:
        return None
    layers, heads, hidden, inner = _JANUS_PRO[model]
    text = LlamaConfig(
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        hidden_size=hidden,
        intermediate_size=inner,
    )
    vision = JanusVisionConfig(image_size=384, patch_size=16, num_image_tokens=576)
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=JanusVQVAEConfig(num_embeddings=16384))
    return janus_shape(config, model, "")
