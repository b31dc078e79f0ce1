"""What the rest of headscope may ask of an image-generating transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from transformers import Cache

from headscope.policy import ModelShape


@dataclass(frozen=True)
class Prefix:
    """What stands before the first image token, for a batch of B prompts.

    Attributes:
        ids: int64 [B, P], left padded; the last one opens the image.
        mask: int64 [B, P], 0 at the padding.
        unconditional_ids: int64 [B, P], as `ids`, for the other stream of classifier-free guidance.
        unconditional_mask: int64 [B, P], as `mask`, likewise.
        texts: the exact strings that were tokenized.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    unconditional_ids: torch.Tensor
    unconditional_mask: torch.Tensor
    texts: list[str]

    def stacked(self, guided: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask, int64 [streams * B, P], of all streams as rows of one batch, the conditional ones first.

        Args:
            guided: whether the unconditional stream runs too.
        """
        if not guided:
            return self.ids, self.mask
        return torch.cat([self.ids, self.unconditional_ids]), torch.cat([self.mask, self.unconditional_mask])


class ImageModel(Protocol):
    """A text-to-image transformer that generates raster-ordered codes.

    Attributes:
        name: what the user called it.
        shape: layers, heads, geometry and fingerprints.
        vocabulary: number of image codes V.
        max_prefix: most tokens a prefix may have.
        decoder: the transformer; what is traced and compressed.
        guidance: the family's scale of classifier-free guidance by default; 1 is none.
        temperature: what logits are divided by, by default.
        top_k: how many codes are sampled from by default, None for all.
    """

    name: str
    shape: ModelShape
    vocabulary: int
    max_prefix: int
    decoder: nn.Module
    guidance: float
    temperature: float
    top_k: int | None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        ...

    def tokenize(self, prompts: list[str], length: int | None = None) -> Prefix:
        """Tokenize prompts, left padded to the longest one, or to `length` tokens where that is longer.

        Raises:
            DataError: no prompt, an empty one, or one longer than `max_prefix` tokens.
        """
        ...

    def token_strings(self, ids: torch.Tensor) -> list[str]:
        """The tokens ids [P] as the tokenizer writes them, marks of spaces included."""
        ...

    def embed_prefix(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, P] -> [B, P, C]."""
        ...

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, T] -> [B, T, C]."""
        ...

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None = None) -> torch.Tensor:
        """Causal forward. embeds [B, T, C], mask int64 [B, past + T] (None: nothing is padded) -> hidden [B, T, C]."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, C] -> scores of the next image code [B, T, V]."""
        ...

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image codes [B, N] -> uint8 [B, height, width, 3]."""
        ...
