"""Decoding by the model's own forward, of any family: with a plain cache that keeps everything, or with a policy's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from headscope.models import ImageModel, Prefix
from headscope.policy import Policy, Schedule, schedule
from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.plain import PlainCache
from headscope.runtime.row_cache import cache_for
from headscope.runtime.rows_at_once import feed_rows


class TransformersDecoder:
    """See `Decoder`. Takes any model and any policy; None keeps everything.

    Attributes:
        cache: of the batch, None before `prefill`.
        prefix: tokens of the prompts, padding included.
        streams: rows of an image.
        plan: the steps of rows that the policy generates at once, for `feed`; None: `step` feeds a token.
    """

    name: ClassVar[str] = "transformers"

    def __init__(self, model: ImageModel, policy: Policy | None) -> None:
        self.model, self.policy = model, policy
        if policy is None and model.shape.folds_prefix:  # which a plain cache does not
            self.policy = Policy.uniform(model.shape, window=model.shape.geometry.tokens - 1, stride=1, prefix=model.max_prefix)
        self.cache: PlainCache | CompressedCache | None = None
        self.prefix, self.streams = 0, 1
        self._mask = torch.empty(0)
        rows = self.policy is not None and self.policy.rows_at_once
        self.plan: Schedule | None = schedule(model.shape.geometry, self.policy.lead) if self.policy and rows else None

    @classmethod
    def lacking(cls, model: ImageModel, policy: Policy | None) -> str | None:
        """See `Decoder.lacking`."""
        if policy is not None and policy.rows_at_once and not hasattr(model, "forward_at"):
            return "needs a model with `forward_at` where rows are generated at once"
        return None

    def prefill(self, prefix: Prefix, guided: bool) -> torch.Tensor:
        """See `Decoder.prefill`."""
        model, count = self.model, self.model.shape.geometry.tokens
        ids, mask = prefix.stacked(guided)
        self.prefix, self.streams = ids.shape[1], 2 if guided else 1
        self._mask = torch.cat([mask, mask.new_ones(len(mask), count)], 1)
        if self.policy is None:
            self.cache = PlainCache(model.shape.layers, self.prefix + count)
        else:
            whole: dict[str, Any] = {"batch": len(ids), "dtype": model.dtype, "device": model.device}
            self.cache = cache_for(self.policy, prefix=self.prefix, **whole)
        if not self.prefix:
            return torch.empty(len(ids), 0, device=ids.device)
        with self._attention():
            return model.forward(model.embed_prefix(ids), mask, self.cache)[:, -1]

    def step(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """See `Decoder.step`."""
        with self._attention():
            return self.model.forward(self._embedded(tokens), self._mask[:, : self.prefix + t + 1], self.cache)[:, 0]

    def feed(self, tokens: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Feed an image step by step, rows at once, after `prefill`.

        Args:
            tokens: int64 [n, N], row ends and token 0 filled in; others are read once they were given.

        Returns:
            Image tokens by number, as they are due to be drawn into `tokens`, and the hidden states [streams * n, C] that tell.
        """
        assert self.plan is not None
        assert isinstance(self.cache, CompressedCache)
        assert self.policy is not None

        def embedded(at: list[int]) -> torch.Tensor:
            return self.model.embed_tokens(tokens[:, at]).repeat(self.streams, 1, 1)

        mask = self._mask[:, : self.prefix]
        return feed_rows(self.model, self.cache, mask, embedded)

    def kept(self) -> Iterable[Sequence[torch.Tensor]]:
        """See `Decoder.kept`."""
        layers: list[Any] = [] if self.cache is None else list(self.cache.layers)
        return (layer.kept() for layer in layers)

    def nbytes(self) -> int:
        """See `Decoder.nbytes`."""
        return 0 if self.cache is None else self.cache.nbytes()

    def _attention(self) -> AbstractContextManager[None]:
        """The model's own attention, or through the cache for as long as a call lasts."""
        return nullcontext() if self.policy is None else compressed(self.model, self.policy)

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes [n] -> [streams * n, 1, C]."""
        return self.model.embed_tokens(tokens[:, None]).repeat(self.streams, 1, 1)
