"""Going on from earlier weights: a model folder such as the shipped one, or the folder of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.storage import read_json, write_json, write_whole

RECIPE = "recipe.json"  # of a model folder: every stage of its training
STAGES = "stages.json"  # of a training folder: those before
_VQ = "model.vqmodel."


def earlier_weights(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The transformer's parts as `trainable` names them, in float32, and the VQ model's, as they are stored.

    Args:
        folder: a model folder (`model*.safetensors`), or a training folder (`transformer.safetensors`, `vq.safetensors`).
    Raises:
        DataError: it is neither, or a file in it cannot be read.
    """
    try:
        if (folder / "transformer.safetensors").is_file() and (folder / "vq.safetensors").is_file():
            parts, vq = load_file(folder / "transformer.safetensors"), load_file(folder / "vq.safetensors")
            parts = {name: value for name, value in parts.items() if not name.startswith("optimiser.")}
        else:
            state = {
                name: value for file in sorted(folder.glob("model*.safetensors")) for name, value in load_file(file).items()
            }
            vq = {name.removeprefix(_VQ): value for name, value in state.items() if name.startswith(_VQ)}
            kinds = ("language_model.", "generation_embeddings.", "generation_aligner.", "generation_head.")
            named = {name.removeprefix("model."): value for name, value in state.items()}
            parts = {name: value for name, value in named.items() if name.startswith(kinds)}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: its weights cannot be read ({error}); name another folder with --warm-start.") from None
    if not parts or not vq:
        raise DataError(
            f"{folder}: holds no weights to go on from; --warm-start takes a model folder (model.safetensors) or the folder of "
            "an earlier run (transformer.safetensors and vq.safetensors)."
        )
    return {name: value.float() for name, value in parts.items()}, vq


def stages_of(folder: Path) -> list[dict[str, Any]]:
    """What weights have behind them, oldest first: {"preset": name, "images": how many the transformer saw}.

    Of a model folder its whole recipe; of a training folder the stages before its own. Empty where nothing was noted.
    """
    found = next((folder / name for name in (RECIPE, STAGES) if (folder / name).is_file()), None)
    return [] if found is None else list(read_json(found))


def take_over_vq(folder: Path, out: Path) -> None:
    """Put the earlier VQ model into `out`, and what the earlier weights have behind them: it is convolutional, so it serves
    images of any size."""
    write_json(out / STAGES, stages_of(folder))
    vq = {name: value.contiguous() for name, value in earlier_weights(folder)[1].items()}
    write_whole(out / "vq.safetensors", lambda path: save_file(vq, path))
