"""Janus, Janus-Pro and the bundled model: one adapter around transformers' `JanusForConditionalGeneration`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, DynamicCache, JanusConfig, JanusForConditionalGeneration

from headscope.errors import ModelError
from headscope.facts import said
from headscope.geometry import Geometry
from headscope.models.cache_name import cache_name
from headscope.models.checkpoint import check_room, weight_files
from headscope.models.fingerprint import weights_fingerprint
from headscope.models.loading import Placed, check_whole, other_size
from headscope.models.network import NetworkModel
from headscope.models.protocol import Prefix
from headscope.models.ranges import check_ranges
from headscope.models.tokens import check_prompts, check_spaces, left_padded
from headscope.models.vq import as_pixels
from headscope.policy import ModelShape

# The authors' own sampling script: guidance 5, temperature 1, no top-k.
GUIDANCE, TEMPERATURE, TOP_K = 5.0, 1.0, None
# What generates; what looks at images or writes text comes behind it.
_DRAWING = (
    "model.language_model.",
    "model.generation_",
    "model.vqmodel.quantize.",
    "model.vqmodel.post_quant_conv.",
    "model.vqmodel.decoder.",
)
_UNUSED = ("model.vision_model.", "model.aligner.", "model.vqmodel.encoder.", "model.vqmodel.quant_conv.", "lm_head.")
# Has a row a token of the images that the model was trained on.
_PLACES = "model.vision_model.embeddings.position_embedding.weight"


class JanusModel(NetworkModel):
    """An `ImageModel` (see protocol.py) over a loaded Janus network and its tokenizer."""

    counts_padding = True  # rotary attention only reads differences of positions

    def __init__(self, network: JanusForConditionalGeneration, tokenizer: Any, name: str) -> None:
        super().__init__(network, name)
        self.tokenizer = tokenizer
        config: Any = network.config
        self.shape = janus_shape(config, name, weights_fingerprint(self.decoder))
        text, tokens = config.text_config, self.shape.geometry.tokens
        self.vocabulary = int(config.vq_config.num_embeddings)
        limits = [text.max_position_embeddings - tokens]
        if tokenizer.model_max_length < 1_000_000:  # transformers' mark for "not set" is larger
            limits.append(tokenizer.model_max_length)
        self.max_prefix = min(limits)
        settings = network.generation_config
        self.guidance = float(settings.guidance_scale or GUIDANCE)
        self.temperature = float(settings.temperature or TEMPERATURE)
        self.top_k: int | None = TOP_K
        check_ranges(self, name)
        self._begin = getattr(tokenizer, "boi_token", None) or "<begin_of_image>"
        self._begin_id = int(tokenizer.convert_tokens_to_ids(self._begin))

    def tokenize(self, prompts: list[str], length: int | None = None) -> Prefix:
        """See `ImageModel.tokenize`. The unconditional stream is what `generate()` makes of it: every token but the first
        and the begin-of-image becomes a pad, which is attended."""
        check_prompts(prompts)
        texts = [self._text(prompt) for prompt in prompts]
        ids, mask = left_padded(self.tokenizer, prompts, texts, self, length)
        pad, bos = self.tokenizer.pad_token_id, self.tokenizer.bos_token_id
        unconditional = ids.where((ids == bos) | (ids == self._begin_id), pad)
        return Prefix(ids, mask, unconditional, mask, texts)

    def _text(self, prompt: str) -> str:
        text = prompt
        if self.tokenizer.chat_template is not None:
            messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text + self._begin

    def token_strings(self, ids: torch.Tensor) -> list[str]:
        """Tokens [P] as the tokenizer writes them."""
        return list(self.tokenizer.convert_ids_to_tokens(ids.tolist()))

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, T] -> [B, T, C]."""
        return self.network.prepare_embeddings_for_image_generation(tokens)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, C] -> [B, T, V]."""
        return self.network.model.generation_head(hidden)

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, N] -> uint8 [B, height, width, 3]; one image at a time, so that memory stays small."""
        with torch.inference_mode():
            images = [self.network.decode_image_tokens(row[None].long().to(self.device)) for row in tokens]
        return torch.cat([as_pixels(image) for image in images])

    def own_tokens(self, prompts: list[str]) -> torch.Tensor:
        """The likeliest codes of every image, int64 [B, N], by transformers' own `generate`: to compare with.

        Args:
            prompts: B texts.
        """
        prefix = self.tokenize(prompts)
        network, config = self.network, self.network.config.text_config
        past = {cache_name(): DynamicCache(config=config)}  # without one 5.17 stops
        return network.generate(
            prefix.ids,
            attention_mask=prefix.mask,
            generation_mode="image",
            do_sample=False,
            guidance_scale=self.guidance,
            max_length=prefix.ids.shape[1] + self.shape.geometry.tokens,
            **past,
        )


def load_janus(source: str | Path, name: str, device: str, dtype: torch.dtype) -> JanusModel:
    """Load from a folder or a hub id; a folder is never looked up on a network."""
    local = Path(source).is_dir()
    files = weight_files(Path(source)) if local else []
    try:
        if local:
            config = JanusConfig.from_pretrained(source, local_files_only=True)
            check_room(Path(source), files, lambda: JanusForConditionalGeneration(config))
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        loaded: Any = JanusForConditionalGeneration.from_pretrained(
            source, dtype=dtype, local_files_only=local, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except ModelError:
        raise
    except Exception as error:  # what stands in a folder may fail in any way, in classes of several libraries
        raise ModelError(f"{source}: cannot be loaded as a Janus model ({said(error)}).") from error
    network, found = loaded
    _check_size(source, network.config, found["mismatched_keys"])
    aside = check_whole(source, found, _DRAWING, _UNUSED)
    check_spaces(tokenizer, source)
    if tokenizer.chat_template is None and local:
        tokenizer.chat_template = _template(Path(source))
    module: nn.Module = network
    module.to(device)
    model = JanusModel(network, tokenizer, name)
    model.placed = Placed(len(network.state_dict()) - len(found["missing_keys"]), aside)
    return model


def janus_shape(config: Any, name: str, weights: str) -> ModelShape:
    """What a policy must know of a Janus, from its configuration alone.

    Args:
        config: a `JanusConfig`.
        name: what the model is called.
        weights: their fingerprint, "" where they are not here.

    Raises:
        ModelError: its image tokens make no square.
    """
    text, vision = config.text_config, config.vision_config
    side = vision.image_size // vision.patch_size
    if vision.num_image_tokens != side * side:
        raise ModelError(
            f"{name}: its configuration names {vision.num_image_tokens} image tokens but a grid of {side} x {side}; "
            "this is not a Janus model headscope can drive."
        )
    geometry = Geometry(side, side)
    return ModelShape(
        name=name,
        layers=text.num_hidden_layers,
        query_heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        geometry=geometry,
        architecture=_architecture(config, geometry),
        weights=weights,
    )


def _check_size(source: str | Path, config: Any, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse another size of images than that of training, which the vision tower's places tell."""
    for name, found, _ in mismatched:
        if name == _PLACES:
            raise other_size(source, config.vision_config.image_size // config.vision_config.patch_size, found[0])


def _template(folder: Path) -> str | None:
    """The processor's chat template, where the tokenizer has none of its own."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    return None


def _architecture(config: Any, geometry: Geometry) -> str:
    """Hash of what makes two networks take the same policy; not of the versions that wrote the files."""
    text = config.text_config
    facts = {
        "family": "janus",
        "layers": text.num_hidden_layers,
        "query_heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "hidden": text.hidden_size,
        "intermediate": text.intermediate_size,
        "codes": config.vq_config.num_embeddings,
        "rows": geometry.rows,
        "cols": geometry.cols,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
