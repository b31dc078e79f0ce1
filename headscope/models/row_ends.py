"""Row ends: tokens of an image that are no cells, in models that write one after each row. They are forced, not drawn.

Where a model's geometry has row ends, the last code of its vocabulary is theirs. `ImageModel.logits` speaks of cells, which are
never that code; here it becomes the only one where a row ends.
"""

from __future__ import annotations

import torch

from headscope.models.protocol import ImageModel

# A logit that is never drawn, and that guidance and temperature leave finite.
NEVER = -1e4


def logits_of(model: ImageModel, hidden: torch.Tensor, first: int) -> torch.Tensor:
    """[B, T, V] of image tokens `first`, `first` + 1 and so on, from hidden [B, T, C] of the tokens before each."""
    return _forced(model, model.logits(hidden), first)


def evenly(model: ImageModel, images: int, first: int, device: torch.device) -> torch.Tensor:
    """Logits [images, V] of image token `first`, where every code that it may be is as likely."""
    logits = torch.zeros(images, 1, model.vocabulary, device=device)
    if model.shape.geometry.row_end:
        logits[..., -1] = NEVER
    return _forced(model, logits, first)[:, 0]


def random_codes(model: ImageModel, images: int, seed: int = 0) -> torch.Tensor:
    """int64 [images, N], codes of random images, on the model's device."""
    geometry, generator = model.shape.geometry, torch.Generator().manual_seed(seed)
    cells = model.vocabulary - bool(geometry.row_end)
    codes = torch.randint(0, cells, (images, geometry.tokens), generator=generator)
    codes[:, ~geometry.coordinates()[2]] = model.vocabulary - 1
    return codes.to(model.device)


def _forced(model: ImageModel, logits: torch.Tensor, first: int) -> torch.Tensor:
    """logits [B, T, V] of image tokens `first` and on, in which row ends are sure."""
    geometry = model.shape.geometry
    if not geometry.row_end:
        return logits
    at = torch.arange(first, first + logits.shape[1], device=logits.device)
    sure = torch.full_like(logits[0, 0], NEVER)
    sure[-1] = 0.0
    return torch.where((at % geometry.row_length >= geometry.cols)[:, None], sure, logits)
