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
        vocabulary: number of image codes V; with row ends (`shape.geometry.row_end`) the last one is theirs.
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

        Args:
            prompts: B texts as the user typed them; the adapter adds a chat template and the token that opens the image.
            length: tokens that P is at least, such as those of a longer prompt in another call; None: the longest of `prompts`.

        Returns:
            Both streams of the batch, all four tensors int64 [B, P] on `device`: the same P for both, padding on the left
            alone, so that the last column opens the image in every row.

        Raises:
            DataError: no prompt, an empty one, or one longer than `max_prefix` tokens.
        """
        ...

    def token_strings(self, ids: torch.Tensor) -> list[str]:
        """The tokens of one prompt as the tokenizer writes them, marks of spaces included.

        Args:
            ids: int64 [P] on the CPU, a row of `Prefix.ids` without its padding.

        Returns:
            P strings; one that begins a word begins with the mark of a space, "Ġ" or "▁", where the tokenizer has one.
        """
        ...

    def embed_prefix(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of the tokens before the image.

        Args:
            ids: int64 [B, P] on `device`, of either stream or of both stacked, as `tokenize` gives them, padding included.

        Returns:
            [B, P, C] in `dtype` on `device`; C is the decoder's width.
        """
        ...

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of image codes, as the decoder is fed them; positions are `forward`'s matter.

        Args:
            tokens: int64 [B, T] on `device`, codes from 0 to V - 1 of any T tokens of each image, in raster order.

        Returns:
            [B, T, C] in `dtype` on `device`.
        """
        ...

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None = None) -> torch.Tensor:
        """Causal forward of the next T tokens of every row, through transformers' attention interface.

        Args:
            embeds: [B, T, C] in `dtype` on `device`, from `embed_prefix`, `embed_tokens` or both in turn; the rows of two
                guidance streams are twice the images.
            mask: int64 [B, past + T] on `device`, 1 and, at the padding on the left, 0, for all tokens fed so far (also those
                that the cache has dropped) and these; None: nothing is padded.
            cache: what holds the keys and values of the past, and takes in those of these tokens; None: there is no past, and
                nothing is kept.

        Returns:
            [B, T, C] in `dtype`, the decoder's last hidden states, after its final norm; those at the padding mean nothing.
        """
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the image code that comes after each token, before guidance, temperature and top-k.

        Args:
            hidden: [B, T, C] in `dtype` on `device`, from `forward`, of any of its tokens; what comes after is taken for a
                cell, row ends are forced elsewhere (row_ends.py).

        Returns:
            [B, T, V] of a floating dtype, no probabilities; V is `vocabulary`.
        """
        ...

    def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decode whole images.

        Args:
            tokens: int32 or int64 [B, N] on any device, all N codes of each image in raster order, as `Samples.tokens`.

        Returns:
            uint8 [B, height, width, 3] on the CPU, RGB.
        """
        ...
