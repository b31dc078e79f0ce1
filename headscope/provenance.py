"""Where figures come from: versions of what was installed, and the machine that they were measured on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "optuna", "scikit-learn", "pandas", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Version of each of PACKAGES, "unknown" for one that is not installed."""
    return {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str:
    """Version of an installed package, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What figures of time and memory belong to.

    Args:
        device: that the model is on.
        dtype: of its weights.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or platform.machine())
    return {
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device.type,
        "processor": name,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
    }
