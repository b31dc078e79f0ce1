"""LlamaGen: a Llama whose rotary embedding knows rows and columns, after a class or a caption, and a VQ model for pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import nn
from transformers import JanusVQVAE, LlamaConfig, LlamaModel

from headscope.geometry import Geometry
from headscope.models import vq
from headscope.models.fingerprint import weights_fingerprint
from headscope.models.llamagen_captions import CaptionProjection
from headscope.models.llamagen_files import Sizes
from headscope.models.network import NetworkModel
from headscope.models.protocol import Prefix
from headscope.models.tokens import check_prompts
from headscope.policy import ModelShape

# Guidance and top-k of the authors' sampling scripts, by what the model is asked for; the temperature is 1.
SAMPLING = {"class": (4.0, 2000), "text": (7.5, 1000)}
NORM_EPS = 1e-5
# Parts of names here, and what stands in their place in LlamaGen's files.
_NAMES = {
    "decoder.embed_tokens.": "tok_embeddings.",
    "decoder.": "",
    "head.": "output.",
    "prefix.nothing": "cls_embedding.uncond_embedding",
    "prefix.fc": "cls_embedding.cap_proj.fc",
    "prefix.": "cls_embedding.embedding_table.",
    "self_attn.q_proj.weight": "attention.wqkv.weight[q]",
    "self_attn.k_proj.weight": "attention.wqkv.weight[k]",
    "self_attn.v_proj.weight": "attention.wqkv.weight[v]",
    "self_attn.o_proj.": "attention.wo.",
    "mlp.gate_proj.": "feed_forward.w1.",
    "mlp.up_proj.": "feed_forward.w3.",
    "mlp.down_proj.": "feed_forward.w2.",
    "input_layernorm.": "attention_norm.",
    "post_attention_layernorm.": "ffn_norm.",
}


class LlamaGenNetwork(nn.Module):
    """The transformer: the decoder, the head of image codes, and what makes a prefix of a class or a caption.

    Args:
        sizes: of everything.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        config: Any = LlamaConfig(
            vocab_size=sizes.codes,
            hidden_size=sizes.width,
            intermediate_size=sizes.inner,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            max_position_embeddings=sizes.prefix + sizes.side**2,
            rms_norm_eps=NORM_EPS,
            pad_token_id=None,
        )
        self.config = config
        self.decoder = LlamaModel(config)
        self.head = nn.Linear(sizes.width, sizes.codes, bias=False)
        # Of classes the last is no class.
        self.prefix = CaptionProjection(sizes) if sizes.features else nn.Embedding(sizes.classes + 1, sizes.width)

    def get_decoder(self) -> nn.Module:
        """What is traced and compressed."""
        return self.decoder


class Prompts(Protocol):
    """What a model's prompts mean; each method is as that of `ImageModel`."""

    def prefix(self, prompts: Sequence[str]) -> Prefix:
        """See `ImageModel.tokenize`."""
        ...

    def strings(self, ids: torch.Tensor) -> list[str]:
        """See `ImageModel.token_strings`."""
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """See `ImageModel.embed_prefix`."""
        ...


class LlamaGenModel(NetworkModel):
    """An `ImageModel` (see protocol.py) over a loaded LlamaGen.

    Args:
        network: the transformer.
        pixels: the VQ model.
        sizes: of the transformer.
        prompts: what prompts mean.
        name: what the user called it.
        settings: of sampling, and whether a prefix is kept as one entry, where they are not as usual.
    """

    counts_padding = True  # the grid begins behind a prefix of one length

    def __init__(
        self, network: LlamaGenNetwork, pixels: JanusVQVAE, sizes: Sizes, prompts: Prompts, name: str, settings: dict[str, Any]
    ) -> None:
        super().__init__(network, name)
        self.pixels = pixels.eval()
        self.prompts = prompts
        self.vocabulary = sizes.codes
        self.max_prefix = sizes.prefix
        guidance, top_k = SAMPLING[sizes.kind]
        self.guidance = float(settings.get("guidance", guidance))
        self.cfg_interval = int(settings.get("cfg_interval", -1))
        self.temperature = float(settings.get("temperature", 1.0))
        found = settings.get("top_k", top_k)
        self.top_k = None if found is None else min(found, sizes.codes)
        facts = {"family": "llamagen", **asdict(sizes)}
        self.shape = ModelShape(
            name=name,
            layers=sizes.layers,
            query_heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            geometry=Geometry(sizes.side, sizes.side),
            architecture=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
            weights=weights_fingerprint(self.decoder),
            folds_prefix=sizes.prefix > 1 and settings.get("fold_prefix", True),
        )

    def tokenize(self, prompts: list[str], length: int | None = None) -> Prefix:
        """See `ImageModel.tokenize`. A prefix always has `max_prefix` tokens.

        Raises:
            DataError: a prompt that is no class, or a caption without features.
        """
        check_prompts(prompts)
        return self.prompts.prefix(prompts)

    def token_strings(self, ids: torch.Tensor) -> list[str]:
        """Tokens [P] as the prompts have them."""
        return self.prompts.strings(ids)

    def embed_prefix(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, P] -> [B, P, C]."""
        return self.prompts.embed(ids)

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, T] -> [B, T, C]."""
        return self.network.decoder.embed_tokens(tokens)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, C] -> [B, T, V]."""
        return self.network.head(hidden)

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, N] -> uint8 [B, height, width, 3]; one image at a time, so that memory stays small."""
        with torch.inference_mode():
            images = [self.pixels.decode(row[None].long().to(self.device)).permute(0, 2, 3, 1) for row in tokens]
        return torch.cat([vq.as_pixels(image) for image in images])


def stored_name(name: str) -> str:
    """The name in LlamaGen's files of a parameter of `LlamaGenNetwork`."""
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs, 1)
    return name
