"""Models of known sizes with random weights: what a step costs does not depend on what the weights are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    Cache,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    LlamaModel,
)

from headscope.geometry import Geometry
from headscope.models.cache_name import cache_name
from headscope.models.janus import JanusModel
from headscope.policy import ModelShape


@dataclass(frozen=True)
class Size:
    """Layers, heads, KV heads, head size, width of the MLP, codes, side of the grid, tokens of a prompt."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    codes: int = 16384
    side: int = 24
    prefix: int = 32


SIZES = {
    "laptop": Size(12, 12, 12, 64, 2048),
    "tiny": Size(2, 4, 2, 16, 64, codes=64, side=8, prefix=2),
    "dry": Size(1, 4, 2, 16, 32, codes=16, side=2, prefix=1),  # for Triton's interpreter: tens of milliseconds a program
    "janus-pro-1b": Size(24, 16, 16, 128, 5632),
    "janus-pro-7b": Size(30, 32, 32, 128, 11008),
}


class RandomDecoder:
    """What the runtime needs of an `ImageModel`, around a random `LlamaModel`."""

    def __init__(self, name: str, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        size = SIZES[name]
        self.name, self.size = name, size
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=size.heads * size.head_dim,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=size.prefix + size.side**2 + 8,
        )
        torch.manual_seed(seed)
        with torch.device(device):
            network: nn.Module = LlamaModel(config)
        self.decoder = network.to(dtype).eval()
        geometry = Geometry(size.side, size.side)
        self.shape = ModelShape(name, size.layers, size.heads, size.kv_heads, size.head_dim, geometry, name, name)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.decoder.parameters()).device

    @property
    def width(self) -> int:
        """Numbers of a token's embedding."""
        return self.size.heads * self.size.head_dim

    def weight_bytes(self) -> int:
        """Bytes that a step reads of the weights: all but the embedding."""
        return sum(p.numel() * p.element_size() for name, p in self.decoder.named_parameters() if "embed_tokens" not in name)

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None = None) -> torch.Tensor:
        """See `ImageModel.forward`."""
        past = {cache_name(): cache, "use_cache": cache is not None}
        return self.decoder(inputs_embeds=embeds, attention_mask=mask, **past).last_hidden_state


class _Words:
    """What `JanusModel` asks of a tokenizer, for prompts of one length: a prompt is that many times the same word."""

    model_max_length, chat_template, boi_token = 1 << 30, None, "<boi>"
    pad_token_id, bos_token_id = 1, 2

    def __init__(self, length: int) -> None:
        self.length = length

    def convert_tokens_to_ids(self, token: str) -> int:
        """The begin-of-image token."""
        return 3

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[2, *[5] * (self.length - 2), 3]] * len(texts)}

    def pad(self, batch: dict[str, list[list[int]]], **how: object) -> dict[str, torch.Tensor]:
        """Rows of one length need none."""
        ids = torch.tensor(batch["input_ids"])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def random_janus(name: str, dtype: torch.dtype, device: str, seed: int = 0) -> JanusModel:
    """A Janus with the decoder of `SIZES[name]`, its codes and its heads; vision tower and image decoder are stubs."""
    size = SIZES[name]
    width, tokens = size.heads * size.head_dim, size.side**2
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=size.prefix + tokens + 8,
            bos_token_id=2,
            eos_token_id=4,
            pad_token_id=1,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=4 * size.side,
            patch_size=4,
            mlp_ratio=1.0,
            projection_dim=width,
            depth=1,
            num_image_tokens=tokens,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=size.codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 1],
            num_res_blocks=0,
            num_patches=size.side,
            projection_dim=width,
            image_token_embed_dim=width,
        ),
        image_token_id=6,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that float32 weights never exist
    try:
        with torch.device(device):
            network = JanusForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    network.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=4, pad_token_id=1, guidance_scale=5.0, generation_kwargs={"boi_token_id": 3}
    )
    return JanusModel(network, _Words(size.prefix), name)
