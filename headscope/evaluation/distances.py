"""How far is a set of images from real ones: kernel and Fréchet distance on EfficientNet-Lite0 features.

Not to be called FID or KID without saying so: those are on Inception's features, and their figures do not compare with these.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from headscope.errors import DataError
from headscope.evaluation.features import FEATURES, need_packages

SUBSETS, SUBSET = 100, 50


@dataclass(frozen=True)
class Distances:
    """What `distances` found; the smaller, the more alike.

    Attributes:
        kernel: kernel distance, the mean over subsets.
        kernel_spread: its standard deviation over subsets.
        frechet: Fréchet distance.
        images: how many were compared.
        real: with how many real ones.
    """

    kernel: float
    kernel_spread: float
    frechet: float
    images: int
    real: int


class _Features(nn.Module):
    """Hands features on: torchmetrics asks for a network, and ours has run already."""

    num_features = FEATURES

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def distances(features: torch.Tensor, real: torch.Tensor, seed: int = 0) -> Distances:
    """Kernel distance: unbiased squared MMD with the cubic kernel (Binkowski et al. 1801.01401) over random subsets; Fréchet
    distance: of two Gaussians with the sets' means and covariances (Heusel et al. 1706.08500), which is biased upwards where
    there are fewer images than features, so compare it at equal numbers only.

    Args:
        features: float32 [n, 1280], of the images.
        real: float32 [m, 1280], of the real ones.
        seed: of the subsets.

    Raises:
        DataError: fewer than two images on a side, or torchmetrics is not installed.
    """
    need_packages("The distance to real images")
    if min(len(features), len(real)) < 2:
        raise DataError(f"Found {len(features)} images and {len(real)} real ones; a distance needs at least two of each.")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET, len(features), len(real))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # it keeps the features: we have them
        kernel = KernelInceptionDistance(feature=_Features(), subsets=SUBSETS, subset_size=size)
    frechet = FrechetInceptionDistance(feature=_Features())
    for metric in (kernel, frechet):
        metric.update(real, real=True)
        metric.update(features, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mean, spread = kernel.compute()
    return Distances(float(mean), float(spread), float(frechet.compute()), len(features), len(real))
