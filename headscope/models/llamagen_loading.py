"""Loading LlamaGen from a folder: the transformer's file, the VQ model's, and what says what prompts mean."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import JanusVQVAE, JanusVQVAEConfig

from headscope.errors import ModelError
from headscope.facts import said, shown
from headscope.models import vq
from headscope.models.caption_features import Features
from headscope.models.checkpoint import Checkpoint, fill
from headscope.models.codebook import is_foreign
from headscope.models.grid_rotary import GridRotary
from headscope.models.llamagen import LlamaGenModel, LlamaGenNetwork, stored_name
from headscope.models.llamagen_captions import CaptionProjection, Captions
from headscope.models.llamagen_classes import Classes, ClassNames
from headscope.models.llamagen_files import (
    SIDE_FILE,
    SUFFIX,
    LlamaGenCheckpoint,
    Sizes,
    feature_file,
    find_files,
    read_settings,
    sizes_of,
)
from headscope.models.loading import Placed

Made = TypeVar("Made", bound=nn.Module)


def load_llamagen(
    source: str | Path, name: str, device: str, dtype: torch.dtype, features: str = "", fold_prefix: str = ""
) -> LlamaGenModel:
    """Load from a folder with a transformer's and a VQ model's files, and llamagen.json where names do not say all.

    Args:
        source: the folder.
        name: what to call it.
        device: for the weights.
        dtype: of the transformer; the VQ model is in float32.
        features: file of captions' features, in place of features.safetensors in the folder.
        fold_prefix: "true" or "false", in place of what llamagen.json says.

    Raises:
        ModelError: a file that is missing or damaged, or a size that was not trained.
    """
    folder = Path(source)
    settings = read_settings(folder)
    if fold_prefix not in ("", "true", "false"):
        raise ModelError(f"{folder}: fold_prefix is {shown(fold_prefix)}, expected true or false.")
    if fold_prefix:
        settings["fold_prefix"] = fold_prefix == "true"
    files, codebooks = find_files(folder)
    sizes = sizes_of(folder, files, settings)
    names = ClassNames(folder, sizes.classes)
    pixels, decoder = _load_pixels(folder, codebooks, sizes, device)
    network = _empty(folder, lambda: LlamaGenNetwork(sizes))
    network.decoder.rotary_emb = GridRotary(sizes.head_dim, sizes.prefix, sizes.side, device)  # type: ignore[assignment]
    placed = fill(network, LlamaGenCheckpoint(folder, files, sizes), stored_name, ("freqs_cis",), device, dtype, SIDE_FILE)
    _look_at_codes(codebooks[0], sizes, network, pixels)
    takes, file = network.prefix, feature_file(folder, sizes, features)
    prompts = Captions(folder, sizes, takes, file) if isinstance(takes, CaptionProjection) else Classes(names, takes)
    model = LlamaGenModel(network, pixels, sizes, prompts, name, settings)
    model.placed = placed + decoder
    return model


def llamagen_prompts(folder: Path, features: str = "") -> list[str]:
    """Prompts for a run that names none: classes, or the captions of a file of features, where there is one.

    Args:
        folder: the model's.
        features: the file, where it is not in the folder.

    Raises:
        ModelError: the folder holds no LlamaGen.
    """
    sizes = sizes_of(folder, find_files(folder)[0], read_settings(folder))
    if sizes.classes:
        return ClassNames(folder, sizes.classes).prompts()
    file = feature_file(folder, sizes, features)
    return [] if file is None else Features(file, sizes.prefix, sizes.features).captions()


def _load_pixels(folder: Path, files: list[Path], sizes: Sizes, device: str) -> tuple[JanusVQVAE, Placed]:
    """The VQ model, in float32 as LlamaGen runs it, and where its tensors went."""
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ModelError(
            f"{folder}: expected one VQ model, such as vq_ds16_c2i.pt, found {found}: copy the one that the transformer was "
            "trained with."
        )
    checkpoint = Checkpoint(folder, files)
    codes, size = checkpoint.shapes["quantize.embedding.weight"]
    if codes != sizes.codes:
        raise ModelError(
            f"{files[0]}: has {codes} codes, the transformer {sizes.codes}: copy the VQ model that it was trained with."
        )
    levels = vq.decoder_sizes(checkpoint.shapes)
    config = {**levels, "embed_dim": size, "num_embeddings": codes, "num_patches": sizes.side}
    network = _empty(folder, lambda: JanusVQVAE(JanusVQVAEConfig(**config)))
    vq.without_encoder(network)
    return network, fill(network, checkpoint, vq.stored_name, vq.UNUSED, device, torch.float32, "its levels")


def _look_at_codes(file: Path, sizes: Sizes, network: LlamaGenNetwork, pixels: JanusVQVAE) -> None:
    """Warn of a VQ model that the transformer was not trained with, by its name or by its codes."""
    if multiprocessing.parent_process() is not None:  # said in the process that was asked
        return
    other = next(suffix for kind, suffix in SUFFIX.items() if kind != sizes.kind)
    codebook = pixels.quantize.embedding.weight.detach()
    if other in file.name.lower():
        found = f"is by its name that of the other kind of model, and this one takes {sizes.kind} prompts"
    elif is_foreign(codebook, [network.head.weight.detach(), network.decoder.embed_tokens.weight.detach()]):
        found = "has codes that are alike where the transformer knows no likeness"
    else:
        return
    warnings.warn(
        f"{file}: {found}, so images may be noise; use the VQ model that the transformer was trained with, such as "
        f"vq_ds16_{SUFFIX[sizes.kind]}.pt.",
        stacklevel=2,
    )


def _empty(folder: Path, make: Callable[[], Made]) -> Made:
    """A network without weights.

    Raises:
        ModelError: the sizes do not fit each other.
    """
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # such numbers fail in any way, inside transformers
        raise ModelError(f"{folder}: the shapes of its tensors are those of no LlamaGen ({said(error)}).") from error
