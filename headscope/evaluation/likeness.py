"""How like are two images, image by image: torchmetrics' measures, and the cosine of features."""

from __future__ import annotations

import torch
from torch.nn import functional

from headscope.evaluation.features import need_packages

_TOGETHER = 64  # images compared at once


def likeness(images: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    """PSNR in dB (infinite for equal images) and SSIM (Wang et al. 2004, Gaussian window of 11) of each pair.

    Args:
        images: uint8 [n, height, width, 3].
        reference: uint8, the same shape.

    Returns:
        `psnr` and `ssim`: float32 [n].

    Raises:
        DataError: torchmetrics is not installed.
    """
    need_packages("The likeness of images")
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    found: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": []}
    for pair in zip(images.split(_TOGETHER), reference.split(_TOGETHER), strict=True):
        one, other = (value.permute(0, 3, 1, 2).double() for value in pair)
        psnr = peak_signal_noise_ratio(one, other, data_range=255.0, reduction="none", dim=(1, 2, 3))
        # In float32, whose convolutions are thirty times as fast; in 0..1, so that little is lost where variances cancel.
        ssim = structural_similarity_index_measure((one / 255).float(), (other / 255).float(), data_range=1.0, reduction="none")
        found["psnr"].append(torch.as_tensor(psnr).reshape(-1).float())
        found["ssim"].append(torch.as_tensor(ssim).reshape(-1).float().masked_fill(found["psnr"][-1].isinf(), 1.0))
    return {name: torch.cat(parts) for name, parts in found.items()}


def cosine(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Cosine of each pair of features [n, F] -> float32 [n]."""
    return functional.cosine_similarity(features, reference, dim=-1)


def token_agreement(tokens: torch.Tensor, reference: torch.Tensor, row_length: int) -> torch.Tensor:
    """Share of equal tokens in each row of the image: float32 [n, rows].

    Args:
        tokens: int [n, N].
        reference: int [n, N].
        row_length: tokens of a row, by which N is divided.
    """
    return (tokens == reference).float().unflatten(1, (-1, row_length)).mean(2)
