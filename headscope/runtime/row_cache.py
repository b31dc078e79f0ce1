"""RowsCache: a CompressedCache that is fed the tokens of a step of rows at once."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from headscope.errors import CacheError
from headscope.models import Group
from headscope.policy import Bucket, Policy, Step, schedule
from headscope.runtime.buckets import HeavyHeads, WindowHeads
from headscope.runtime.cache import CompressedCache
from headscope.runtime.cache_layer import CompressedLayer
from headscope.runtime.row_buckets import PackedRowsHeavyHeads, PackedRowsWindowHeads, RowsHeavyHeads, RowsWindowHeads


class RowsLayer(CompressedLayer):
    """One decoder layer's cache. After the prefix every call brings a step of the schedule (`policy.Schedule`), what stands in
    for a row's end last; nothing of that is kept.

    Args:
        policy: what to keep, and the lead.
        number: of the layer.
        prefix: tokens of the prompt, padding included; None takes the first call for all of it.
    """

    def __init__(self, policy: Policy, number: int, prefix: int | None = None) -> None:
        super().__init__(policy, number, prefix)
        self.plan = schedule(policy.shape.geometry, policy.lead)
        self.steps = 0  # that are done

    def _bucket(self, numbers: Bucket, start: int, like: torch.Tensor) -> WindowHeads | HeavyHeads:
        slots = self.policy.shape.prefix_slots(self.prefix, numbers.whole_prompt)
        if numbers.heavy:
            heavy = RowsHeavyHeads if numbers.bits == 16 else PackedRowsHeavyHeads
            return heavy(numbers, start, slots, self.plan, self.stride, like)
        window = RowsWindowHeads if numbers.bits == 16 else PackedRowsWindowHeads
        return window(numbers, start, slots, self.plan, like)

    def _check_chunk(self, keys: torch.Tensor) -> None:
        if self.seen < (self.prefix if self.is_initialized else self._prefix_of(keys)):
            super()._check_chunk(keys)
            return
        expected = len(self._due().positions) if self.steps < len(self.plan) else 0
        if keys.shape[2] != expected:
            raise CacheError(
                f"Layer {self.number}: {keys.shape[2]} tokens in one call, expected {expected} at step {self.steps} of "
                f"{len(self.plan)} of rows that follow each other by {self.policy.lead} columns; feed them as "
                "headscope.generate does."
            )

    def _check_mask(self, mask: torch.Tensor | None, length: int) -> None:
        """The schedule says what is seen."""

    def _due(self) -> Step:
        return self.plan.steps[self.steps]

    def _taken_in(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> list[torch.Tensor]:
        step, parts = self._due(), []
        for bucket in self.buckets:
            assert isinstance(bucket, (RowsWindowHeads, RowsHeavyHeads))
            rows = slice(bucket.start, bucket.stop)
            bias = self._bias if bucket.numbers.whole_prompt else self._ends_bias
            parts.append(bucket.rows(query[:, rows], keys[:, rows], values[:, rows], step, bias, scaling))
        self.steps += 1
        self.seen += len(step.tokens)
        return parts

    def step(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
        """Refused: several tokens belong to a step."""
        raise CacheError(f"Layer {self.number}: one token at a time, where rows are generated at once; call `update`.")

    def groups(self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> list[Group]:
        """What an observer is shown, of the prompt; the image is refused."""
        if self._pending is None or self.seen < self.prefix:
            return super().groups(query, mask, scaling)
        raise CacheError(
            f"Layer {self.number}: rows that are generated at once can't be watched; take a policy with a lead of "
            f"{self.policy.shape.geometry.row_length}, which generates row after row."
        )

    def reset(self) -> None:
        """Forget everything; the next call brings a new prefix."""
        super().reset()
        self.steps = 0


class RowsCache(CompressedCache):
    """As `CompressedCache`, for policies that generate rows at once; `feed_rows` feeds it."""

    kind: ClassVar[type[CompressedLayer]] = RowsLayer


def cache_for(policy: Policy, **expected: Any) -> CompressedCache:
    """An empty cache as a policy says: of rows at once where it has a lead.

    Args:
        policy: what to keep.
        expected: prefix, batch, dtype and device, see `CompressedCache`.
    """
    return RowsCache(policy, **expected) if policy.rows_at_once else CompressedCache(policy, **expected)
