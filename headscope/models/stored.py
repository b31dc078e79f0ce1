"""How large a model's weights are, told by its files before anything of them is loaded."""

from __future__ import annotations

from math import prod
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from headscope.errors import ModelError
from headscope.models import vq
from headscope.models.checkpoint import Checkpoint
from headscope.models.hub import HUB_ID
from headscope.models.janus_original import UNUSED
from headscope.models.llamagen_files import find_files, is_llamagen_folder
from headscope.models.model_name import split_name

# Beginnings of tensors' names in the authors' files: of Janus, of LlamaGen's VQ model, and of its angles.
_NOT_LOADED = (*UNUSED, *vq.UNUSED, "freqs_cis")


def stored_numbers(name: str) -> int | None:
    """Numbers of all tensors that loading a model takes in; None where no files tell.

    Args:
        name: of a folder, or of a hub's model that was fetched before; others are not asked for.
    """
    folder = _folder(split_name(name)[0])
    if folder is None:
        return None
    try:
        files = [file for part in find_files(folder) for file in part] if is_llamagen_folder(folder) else []
        shapes = Checkpoint(folder, files).shapes
    except ModelError:  # said when it is loaded
        return None
    return sum(prod(shape) for tensor, shape in shapes.items() if not tensor.startswith(_NOT_LOADED))


def _folder(name: str) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    found = try_to_load_from_cache(name, "config.json") if HUB_ID.fullmatch(name) else None
    return Path(found).parent if isinstance(found, str) else None
