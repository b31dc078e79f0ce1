"""Whether a transformer was trained on the codes of a VQ model: the wrong one loads, and gives noise without an error."""

from __future__ import annotations

import torch
from torch.nn import functional

PAIRS = 4000  # of codes, which leave an error of 0.016
LEAST = 0.06
FEWEST = 256  # codes, below which pairs say little


def likeness(codebook: torch.Tensor, rows: torch.Tensor) -> float:
    """Correlation, over pairs of codes, of how alike they are to the VQ model and to the transformer.

    Codes that stand for like patches are followed by like codes, so training makes their rows alike: the bundled models have
    0.71 and 0.73 for the head, and 0.01 where the codebook's rows are dealt anew.

    Args:
        codebook: [V, E], rows of the VQ model.
        rows: [V, C], of the transformer's embedding or head.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(len(codebook), (PAIRS,), generator=generator)
    second = (first + torch.randint(1, len(codebook), (PAIRS,), generator=generator)) % len(codebook)
    return float(torch.corrcoef(torch.stack([_cosines(table, first, second) for table in (codebook, rows)]))[0, 1])


def is_foreign(codebook: torch.Tensor, tables: list[torch.Tensor]) -> bool:
    """Whether none of a transformer's tables [V, C] knows which codes of the codebook [V, E] are alike."""
    return len(codebook) >= FEWEST and max(likeness(codebook, rows) for rows in tables) < LEAST


def _cosines(table: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of pairs of rows, after the mean row is taken away: [pairs] on the CPU."""
    mean = table.float().mean(0)
    one, other = (table[places.to(table.device)].float() - mean for places in (first, second))
    return functional.cosine_similarity(one, other).cpu()
