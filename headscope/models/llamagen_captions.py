"""Captions as prompts of a LlamaGen: features of their tokens become a prefix of one length, padded on the left."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from headscope.errors import DataError
from headscope.facts import shown
from headscope.models.caption_features import Encoder, Features, write_features
from headscope.models.llamagen_files import ENCODER, FEATURE_FILE, Sizes
from headscope.models.protocol import Prefix


class CaptionProjection(nn.Module):
    """Features of a caption's tokens to embeddings of the decoder: two matrices with a GELU between them.

    Args:
        sizes: of features, of the decoder, and of the prefix.

    Attributes:
        nothing: [P, F], learned features of no caption.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.features, sizes.width, bias=False)
        self.fc2 = nn.Linear(sizes.width, sizes.width, bias=False)
        self.nothing = nn.Parameter(torch.empty(sizes.prefix, sizes.features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., F] -> [..., C]."""
        return self.fc2(functional.gelu(self.fc1(features), approximate="tanh"))


class Captions:
    """The captions seen so far: their features are rows of one table, and a token of a prefix is the number of its row.

    Rows 0 to P - 1 are those of no caption, row P is of padding, and each caption has one a token behind them.

    Args:
        folder: where flan-t5-xl may lie.
        sizes: of features and of the prefix.
        projection: filled, on its device.
        file: of features, where there is one.

    Raises:
        ModelError: a file of features that can't be read or has other sizes.
    """

    def __init__(self, folder: Path, sizes: Sizes, projection: CaptionProjection, file: Path | None) -> None:
        self.folder, self.sizes, self.projection = folder, sizes, projection
        self._precomputed = None if file is None else Features(file, sizes.prefix, sizes.features)
        self._encoder: Encoder | None = None
        nothing = projection.nothing.detach()
        self._table = torch.cat([nothing, nothing.new_zeros(1, sizes.features)])
        self._strings = ["▁"] * len(self._table)
        self._rows: dict[str, range] = {}
        self._lock = threading.Lock()

    def prefix(self, prompts: Sequence[str]) -> Prefix:
        """Captions on the right of P slots; the other stream has the learned rows under the captions' mask.

        Raises:
            DataError: a caption that is too long, or of which there are no features.
        """
        with self._lock:
            self._add([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows])
            rows = [self._rows[prompt] for prompt in prompts]
        slots = self.sizes.prefix
        ids = torch.tensor([[slots] * (slots - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (slots - len(row)) + [1] * len(row) for row in rows])
        other = torch.arange(slots).repeat(len(rows), 1)
        device = self._table.device
        return Prefix(ids.to(device), mask.to(device), other.to(device), mask.to(device), list(prompts))

    def strings(self, ids: torch.Tensor) -> list[str]:
        """Tokens [P] as the caption's tokenizer writes them, or their numbers where only features are there."""
        return [self._strings[one] for one in ids.tolist()]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [B, P] -> [B, P, C]."""
        return self.projection(self._table[ids])

    def features(self, prompt: str) -> tuple[torch.Tensor, list[str]]:
        """Of the caption's tokens, [n, F], and these tokens.

        Raises:
            DataError: see `prefix`.
        """
        found = self._precomputed.of(prompt) if self._precomputed is not None else None
        if found is not None:
            return found, [f"▁{number}" for number in range(1, len(found) + 1)]
        if self._encoder is None:
            if not (self.folder / ENCODER).is_dir():
                raise DataError(self._unknown(prompt))
            self._encoder = Encoder(self.folder / ENCODER, self.sizes.prefix, self.sizes.features, self._table.device)
        return self._encoder.of(prompt)

    def save(self, prompts: Sequence[str], path: Path) -> Path:
        """Write the features of some captions for machines without the encoder, which look for features.safetensors in the
        model's folder.

        Args:
            prompts: the captions.
            path: the file.

        Raises:
            DataError: see `prefix`.
        """
        return write_features(path, prompts, [self.features(prompt)[0] for prompt in prompts])

    def _add(self, prompts: Sequence[str]) -> None:
        """Rows for captions that have none; all at once, for the table is copied."""
        found = [self.features(prompt) for prompt in prompts]
        with torch.inference_mode(False), torch.no_grad():  # who takes gradients later may save no tensor of inference
            self._table = torch.cat([self._table, *(features.to(self._table) for features, _ in found)])
        for prompt, (_, strings) in zip(prompts, found, strict=True):
            self._rows[prompt] = range(len(self._strings), len(self._strings) + len(strings))
            self._strings += strings

    def _unknown(self, prompt: str) -> str:
        here = f"there is no folder {ENCODER} in {self.folder} to compute them"
        if self._precomputed is None:
            return f"prompt {shown(prompt)}: no features of it, and {here}: put it there, or {FEATURE_FILE} with yours."
        return (
            f"prompt {shown(prompt)}: not among the {len(self._precomputed)} captions of {self._precomputed.file.name}, and "
            f"{here}: give one of those, such as {shown(self._precomputed.captions()[0])}, or put it there."
        )
