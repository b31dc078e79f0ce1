"""PlainCache: everything kept, in memory that is allocated once for the whole image."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headscope.errors import CacheError


class CountingLayer(CacheLayerMixin):
    """A layer that knows how many tokens it has seen: what a model asks of it before it builds a mask."""

    is_compileable = False
    is_sliding = False
    seen = 0  # tokens, the prefix included

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """Keys the model sees, and their offset; older transformers pass the positions in place of a length."""
        length = len(query_length) if isinstance(query_length, torch.Tensor) and query_length.ndim else int(query_length)
        return self.seen + length, 0

    def get_seq_length(self) -> int:
        """Tokens seen so far, kept or not."""
        return self.seen

    def get_max_cache_shape(self) -> int:
        """As `get_max_length`, under the name of older transformers."""
        return self.get_max_length()


class PlainLayer(CountingLayer):
    """One decoder layer's keys and values [B, H, tokens, D], filled from the left; attention sees the filled part as a view.

    Example: 6 tokens. A prefix of 3 fills slots 0 to 2; the next token is written to slot 3, and the model attends to 0 to 3.
    A `DynamicLayer` of transformers would copy those 3 first, in every layer and at every token.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self._kept = (torch.empty(0), torch.empty(0))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for keys and values [B, H, T, D] like these."""
        keys, values = ((*states.shape[:2], self.tokens, states.shape[3]) for states in (key_states, value_states))
        self._kept = (key_states.new_empty(keys), value_states.new_empty(values))
        self.keys, self.values = self._kept
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in keys and values [B, H, T, D] of the next T tokens -> all so far [B, H, seen, D].

        Raises:
            CacheError: there is no room for them.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = slice(self.seen, self.seen + key_states.shape[2])
        if new.stop > self.tokens:
            raise CacheError(f"PlainCache has room for {self.tokens} tokens, not for {new.stop}; make it with more.")
        keys, values = self._kept
        keys[:, :, new], values[:, :, new] = key_states, value_states
        self.seen = new.stop
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def kept(self) -> list[torch.Tensor]:
        """Keys and values [B, H, seen, D]."""
        return [part[:, :, : self.seen] for part in self._kept] if self.is_initialized else []

    def nbytes(self) -> int:
        """Bytes of keys and values, of tokens to come too."""
        return sum(part.numel() * part.element_size() for part in self._kept)

    def get_max_length(self) -> int:
        """Tokens there is room for."""
        return self.tokens


class PlainCache(Cache):
    """The model's own cache for `layers` layers, with room for `tokens` tokens, prefix included, and not one more."""

    def __init__(self, layers: int, tokens: int) -> None:
        self.plain_layers = [PlainLayer(tokens) for _ in range(layers)]
        super().__init__(layers=list(self.plain_layers))

    def nbytes(self) -> int:
        """Bytes of all keys and values, of tokens to come too. 0 before the first call."""
        return sum(layer.nbytes() for layer in self.plain_layers)
