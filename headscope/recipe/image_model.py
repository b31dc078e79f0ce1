"""The image model whose VQ model and transformer the detector's data come through."""

from __future__ import annotations

from typing import Any

from headscope.errors import DataError
from headscope.models import load_model
from headscope.models.janus import JanusModel
from headscope.stickereval.detector import channels_last


def load_image_model(name: str) -> JanusModel:
    """A bundled model or one in a folder, frozen.

    Raises:
        DataError: another kind of model.
    """
    model: Any = load_model(name)
    if not isinstance(model, JanusModel):
        raise DataError(f"{name}: is no Janus; take `stickers-scenes` or a folder with a Janus model.")
    network: Any = model.network.requires_grad_(False)
    channels_last(network.model.vqmodel)
    return model
