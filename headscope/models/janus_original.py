"""Janus and Janus-Pro as DeepSeek publishes them: their own names of tensors, settings and templates, the same network.

What generates images is loaded: the Llama, the embedding and head of image codes, and the VQ model's decoder. What looks at
images (the vision tower) or writes text (the Llama's head) stays away and takes no memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from headscope.errors import ModelError
from headscope.facts import OBJECT, check, record, said, whole
from headscope.models import vq
from headscope.models.checkpoint import Checkpoint, Shapes, fill
from headscope.models.janus import GUIDANCE, TEMPERATURE, JanusModel
from headscope.models.janus_tokenizer import load_tokenizer
from headscope.models.loading import other_size, read_object

ORIGINAL_TYPE = "multi_modality"
# What DeepSeek's config.json leaves out where it equals transformers' Llama of 2024, written out against later defaults.
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
# What it has that says nothing of the network; its attention needs a package and a GPU.
_NO_SETTINGS = (
    "_attn_implementation",
    "attn_implementation",
    "_name_or_path",
    "architectures",
    "dtype",
    "model_type",
    "torch_dtype",
)
_SETTINGS = {
    "language_config": OBJECT,
    "vision_config": record({"params": record({"image_size": whole(1, 4096)})}),
    "gen_vision_config": record({"params": record({"image_token_size": whole(1), "n_embed": whole(1)})}),
    "gen_aligner_config": record({"params": record({"depth": whole(1, 64), "n_embed": whole(1)})}),
    "gen_head_config": record({"params": record({"image_token_embed": whole(1)})}),
}
_VQ = "gen_vision_model."
# Has a row a token of the images that the model was trained on, [1, tokens, C].
_PLACES = "vision_model.vision_tower.pos_embed"
# Beginnings of names in transformers, and what stands in their place here.
_BEGINNINGS = {
    "model.language_model.": "language_model.model.",
    "model.generation_embeddings.": "gen_embed.",
    "model.generation_aligner.fc1.": "gen_aligner.layers.0.",
    "model.generation_aligner.": "gen_aligner.",
    "model.generation_head.proj_out.": "gen_head.output_mlp_projector.",
    "model.generation_head.": "gen_head.",
}
UNUSED = (
    "vision_model.",
    "aligner.",
    "language_model.lm_head.",
    *(_VQ + name for name in vq.UNUSED),
)


def load_janus_original(source: str, name: str, device: str, dtype: torch.dtype) -> JanusModel:
    """Load from a folder in DeepSeek's format.

    Raises:
        ModelError: it is JanusFlow or another relative, or not whole, or its tokenizer is not to be trusted.
    """
    folder = Path(source)
    settings = _settings(folder)
    checkpoint = Checkpoint(folder)
    _check_size(folder, settings, checkpoint.shapes)
    tokenizer = load_tokenizer(folder)
    try:
        config = _configuration(settings, checkpoint.shapes, tokenizer)
        network = _network(config, tokenizer, device)
    except Exception as error:  # numbers that do not fit each other fail in any way, inside transformers
        raise ModelError(f"{folder / 'config.json'}: describes no Janus that can be made ({said(error)}).") from error
    placed = fill(network, checkpoint, stored_name, UNUSED, device, dtype)
    model = JanusModel(network, tokenizer, name)
    model.placed = placed
    return model


def is_flow(name: str) -> bool:
    """Whether a hub id is JanusFlow's."""
    return "janusflow" in name.lower()


def flow_refused(source: str | Path) -> ModelError:
    """The error that names JanusFlow."""
    return ModelError(
        f"{source}: is JanusFlow, which makes all of an image at once, by rectified flow, and keeps no cache of image tokens; "
        "name a Janus or a Janus-Pro."
    )


def stored_name(name: str) -> str:
    """The name of a parameter in DeepSeek's files, from that in transformers."""
    if found := re.fullmatch(r"model\.generation_aligner\.hidden_layers\.(\d+)\.(\w+)", name):
        return f"gen_aligner.layers.{2 * int(found[1]) + 2}.{found[2]}"
    if name.startswith("model.vqmodel."):
        return _VQ + vq.stored_name(name.removeprefix("model.vqmodel."))
    for ours, theirs in _BEGINNINGS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _settings(folder: Path) -> dict[str, Any]:
    """config.json, checked.

    Raises:
        ModelError: it is another model's, or lacks what is needed.
    """
    where = str(folder / "config.json")
    settings = read_object(folder / "config.json")
    if "vision_gen_dec_config" in settings or "vision_gen_enc_config" in settings:
        raise flow_refused(folder)
    if "gen_vision_config" not in settings:
        raise ModelError(
            f"{where}: has no gen_vision_config, so the model looks at images and generates none (DeepSeek-VL is one); name a "
            "Janus or a Janus-Pro."
        )
    check(settings, _SETTINGS, where, ModelError, "copy the checkpoint's own config.json")
    kind = settings["language_config"].get("model_type", "llama")
    if kind != "llama":
        raise ModelError(f"{where}: language_config.model_type is {kind!r}, expected 'llama': this is not a Janus.")
    return settings


def _configuration(settings: dict[str, Any], shapes: Shapes, tokenizer: Any) -> JanusConfig:
    """The same model as transformers describes it; its vision tower is as small as can be, because it is thrown away."""
    given = {name: value for name, value in settings["language_config"].items() if name not in _NO_SETTINGS}
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    text: Any = LlamaConfig(**{**_LLAMA, **given, **ends})
    decoder = _levels(shapes)
    patch = _patch(decoder)
    image = settings["vision_config"]["params"]["image_size"]
    side = image // patch
    aligner = settings["gen_aligner_config"]["params"]
    pixels = JanusVQVAEConfig(
        **decoder,
        embed_dim=settings["gen_vision_config"]["params"]["n_embed"],
        num_embeddings=settings["gen_vision_config"]["params"]["image_token_size"],
        num_patches=side,
        projection_dim=aligner["n_embed"],
        num_hidden_layers=aligner["depth"],
        image_token_embed_dim=settings["gen_head_config"]["params"]["image_token_embed"],
    )
    tower: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_ratio": 1.0, "depth": 1}
    vision = JanusVisionConfig(
        **tower, image_size=image, patch_size=patch, num_image_tokens=side * side, projection_dim=text.hidden_size
    )
    return JanusConfig(text_config=text, vision_config=vision, vq_config=pixels)


def _check_size(folder: Path, settings: dict[str, Any], shapes: Shapes) -> None:
    """Refuse another size of images than that of training, which the vision tower's places tell."""
    trained, patch = shapes.get(_PLACES, ()), _patch(_levels(shapes))
    side = settings["vision_config"]["params"]["image_size"] // patch
    if len(trained) == 3 and trained[1] != side * side:
        raise other_size(folder, side, trained[1])


def _levels(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the VQ model's decoder."""
    return vq.decoder_sizes({name.removeprefix(_VQ): shape for name, shape in shapes.items()})


def _patch(levels: dict[str, Any]) -> int:
    """Pixels of a token's side."""
    return 2 ** (len(levels["channel_multiplier"]) - 1)


def _network(config: JanusConfig, tokenizer: Any, device: str) -> JanusForConditionalGeneration:
    """The network without weights, and without the parts that do not generate images."""
    with torch.device("meta"):
        network: Any = JanusForConditionalGeneration(config)
    inner = network.model
    network.lm_head = vq.Absent("the head that writes text", config)
    inner.vision_model = vq.Absent("the vision tower", config.vision_config)
    inner.aligner = vq.Absent("the vision tower's aligner", config)
    vq.without_encoder(inner.vqmodel)
    rotary = inner.language_model.rotary_emb  # its angles are computed, not stored
    inner.language_model.rotary_emb = type(rotary)(config.text_config).to(device)
    begin = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
    network.generation_config = GenerationConfig(
        guidance_scale=GUIDANCE,
        temperature=TEMPERATURE,
        do_sample=True,
        generation_kwargs={"boi_token_id": begin},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return network
