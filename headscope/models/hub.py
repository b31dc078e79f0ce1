"""Models by a hub id, `owner/name`: whether the hub has one, and what of it is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)

from headscope.errors import ModelError
from headscope.facts import said
from headscope.models.families import family_of
from headscope.models.janus_original import flow_refused, is_flow
from headscope.models.protocol import ImageModel

# `owner/name`, as a hub spells it.
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# Seconds that a hub may take to say what it has.
_PATIENCE = 10.0


def from_hub(name: str, device: str, dtype: torch.dtype, others: str, known: bool) -> ImageModel:
    """Load by a hub id, after its config.json has said of which family it is.

    Args:
        name: the id.
        device: for the weights.
        dtype: of the weights.
        others: what else can be named, for the sentence.
        known: whether the id is one of ours, and so no folder that was mistyped.

    Raises:
        ModelError: no hub has it, or it is of no family.
    """
    if is_flow(name):
        raise flow_refused(name)
    _look_for(name, others, known)
    try:
        family = family_of(name, Path(hf_hub_download(name, "config.json")))
        source = name if family.by_id else snapshot_download(name, allow_patterns=_needed(name))
    except ModelError:
        raise
    except Exception as error:  # of the hub's client and of the network below it
        raise ModelError(f"{name}: could not be fetched from a hub ({said(error)}): try again, or name a folder.") from error
    return family.load(source, name, device, dtype)


def _needed(name: str) -> list[str]:
    """Patterns of what is fetched of a model whose loader reads a folder: weights once, as safetensors where there are some."""
    try:
        files = [file.rfilename for file in HfApi().model_info(name, timeout=_PATIENCE).siblings or []]
    except Exception:  # nobody answers, so what was fetched before is all there is
        files = []
    safe = any(file.startswith("model") and file.endswith(".safetensors") for file in files)
    return ["*.json", "*.safetensors"] if safe else ["*.json", "*.safetensors", "*.bin"]


def _look_for(name: str, others: str, known: bool) -> None:
    """Ask once, and briefly, whether a hub has the model `name`: transformers would ask for a minute where nobody answers.

    Raises:
        ModelError: `name` looks like a path from here, or the hub has no such model or does not answer.
    """
    if try_to_load_from_cache(name, "config.json") is not None:
        return
    if not known and Path(name.split("/")[0]).is_dir():
        raise ModelError(
            f"{name}: looked for a folder of this name in {Path.cwd()}, found {name.split('/')[0]} there but no "
            f"{name.split('/')[1]} in it, so no hub was asked; {others}."
        )
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_PATIENCE)
    except Exception as error:  # of the hub's client and of the network below it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: no folder here, and not to be had from a hub ({reason}); {others}.") from error
