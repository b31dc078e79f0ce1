"""One decoder layer's cache, as small as its policy says.

Long, because what a layer takes in, attends to and refuses is one protocol, that of transformers' cache layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from headscope.errors import CacheError, NumberError
from headscope.models import Group, goes_through_cache, leave_handle, may_chunk_prompts, plain_groups, split_mask
from headscope.policy import Bucket, Policy
from headscope.runtime.buckets import HeavyHeads, WindowHeads
from headscope.runtime.folded_prefix import folded
from headscope.runtime.plain import CountingLayer
from headscope.runtime.prompt_ends import PromptEnds
from headscope.runtime.quantized_heads import PackedHeavyHeads, PackedWindowHeads

_CHECKED = "_headscope_checked"  # on a mask that was looked at, for how many tokens seen


class CompressedLayer(CountingLayer):
    """One decoder layer's cache. `update` only takes the new tokens in; `attend` does the work.

    The first call is the whole prefix, unless its length is told: then it may come in several. Later calls bring one image
    token, or several that do not cross a stride end. The prompt's own tokens see each other in full; heads that keep only its
    ends drop the rest with its last token.

    Args:
        policy: what to keep.
        number: of the layer.
        prefix: tokens of the prompt, padding included; None takes the first call for all of it.
    """

    is_croppable = False

    def __init__(self, policy: Policy, number: int, prefix: int | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.number = number
        self.told = prefix
        self.stride = min(policy.stride, policy.shape.geometry.tokens)
        self.queries_per_kv = policy.shape.query_heads // policy.shape.kv_heads
        self._numbers = policy.buckets(number)
        order = [head for bucket in self._numbers for head in bucket.heads]
        self._order = None if order == sorted(order) else torch.tensor(order)
        self.buckets: list[WindowHeads | HeavyHeads] = []
        self.prefix = 0
        self.slots = 0  # that the prefix takes in heads that keep all of it
        self._real: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._ends: PromptEnds | None = None
        self._ends_bias: torch.Tensor | None = None
        self._pending: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate every bucket for a prefix that begins with these keys [B, H, T, D]."""
        self.prefix = self._prefix_of(key_states)
        self.slots = self.policy.shape.prefix_slots(self.prefix)
        check_prefix(self.policy, self.prefix)
        start = 0
        for numbers in self._numbers:
            self.buckets.append(self._bucket(numbers, start, key_states))
            start = self.buckets[-1].stop
        if self._order is not None:
            self._order = self._order.to(key_states.device)
            in_group = torch.arange(self.queries_per_kv, device=key_states.device)
            self._query_order = (self._order[:, None] * self.queries_per_kv + in_group).flatten()
            self._query_back = self._query_order.argsort()
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def _bucket(self, numbers: Bucket, start: int, like: torch.Tensor) -> WindowHeads | HeavyHeads:
        """Allocate one whose first head is the `start`-th in the order of buckets, for keys [B, H, T, D] like these."""
        slots = self.policy.shape.prefix_slots(self.prefix, numbers.whole_prompt)
        if numbers.heavy:
            heavy = HeavyHeads if numbers.bits == 16 else PackedHeavyHeads
            return heavy(numbers, start, slots, self.stride, like)
        window = WindowHeads if numbers.bits == 16 else PackedWindowHeads
        return window(numbers, start, slots, like)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in keys and values [B, H, T, D] of the next T tokens; the attention function finds this layer on the keys.

        Raises:
            CacheError: the tokens before were never attended to, or T tokens cross a stride end or the prompt's end.
        """
        if self._pending is not None:
            raise CacheError(
                f"Layer {self.number}: the decoder computes its attention by itself, not through transformers' attention "
                "interface, so a CompressedCache can't serve it; see `RasterModel` for networks in plain PyTorch."
                if goes_through_cache()
                else "CompressedCache needs headscope's attention: use `with headscope.compressed(model, policy)` around the "
                "calls of the model."
            )
        self._check_chunk(key_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._pending = (key_states, value_states)
        return leave_handle(key_states.view_as(key_states), self), value_states

    def _prefix_of(self, first: torch.Tensor) -> int:
        """Length of the prompt that begins with these keys [B, H, T, D]."""
        return first.shape[2] if self.told is None else self.told

    def _check_chunk(self, keys: torch.Tensor) -> None:
        length, tokens = keys.shape[2], self.policy.shape.geometry.tokens
        t = self.seen - (self.prefix if self.is_initialized else self._prefix_of(keys))
        if t < 0:
            if t + length > 0:
                raise CacheError(
                    f"Layer {self.number}: tokens {self.seen} to {self.seen + length - 1} in one call cross the end of the "
                    f"prompt, which was said to have {self.told} tokens; feed the prompt alone."
                )
            return
        if t + length > tokens:
            raise CacheError(
                f"Layer {self.number}: image token {t + length - 1} is outside the image of {tokens} tokens; make a new "
                "CompressedCache for a new image."
            )
        crosses = t // self.stride != (t + length - 1) // self.stride
        if crosses and any(numbers.heavy for numbers in self._numbers):
            raise CacheError(
                f"Layer {self.number}: image tokens {t} to {t + length - 1} in one call cross a stride end (stride "
                f"{self.stride}); feed them in smaller chunks."
            )

    def attend(self, module: nn.Module, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
        """query [B, Hq, T, D] -> output [B, T, Hq, D]; adds scores and chooses what stays."""
        if self._pending is None:
            raise CacheError(f"Layer {self.number}: attention without new keys; a call of the model was interrupted.")
        keys, values = self._pending
        self._pending = None
        t = self.seen - self.prefix
        if self.told is None and may_chunk_prompts(module):
            self._check_whole_prompt(query.shape[2])
        if t < 0:
            return self._attend_in_prefix(module, query, keys, values, mask, scaling)
        keys_in, values_in = self._in_buckets(keys), self._in_buckets(values)
        self._check_mask(mask, query.shape[2])
        batch, heads, length, size = query.shape
        if self._order is not None:
            query = query.index_select(1, self._query_order)
        packed = query.reshape(batch, heads // self.queries_per_kv, self.queries_per_kv * length, size)
        out = self._by_bucket(packed, keys_in, values_in, scaling).view(batch, heads, length, size)
        if self._order is not None:
            out = out.index_select(1, self._query_back)
        return out.transpose(1, 2)

    def _by_bucket(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
        """Image tokens: query [B, H, G * T, D], keys and values [B, H, T, D], heads in the order of buckets."""
        t, length = self.seen - self.prefix, keys.shape[2]
        try:
            parts = self._taken_in(query, keys, values, scaling)
        except NumberError as error:
            tokens = f"token {t}" if length == 1 else f"tokens {t} to {t + length - 1}"
            raise NumberError(
                f"Layer {self.number}: keys or values of image {tokens} are {error}, and the policy writes them in fewer bits; "
                "load the model in another dtype, or use a policy that keeps 16 bits."
            ) from None
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _taken_in(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> list[torch.Tensor]:
        """As `_by_bucket`, a part a bucket."""
        t, length = self.seen - self.prefix, keys.shape[2]
        parts = []
        for bucket in self.buckets:
            rows = slice(bucket.start, bucket.stop)
            work = bucket.step if length == 1 else bucket.chunk
            bias = self._bias if bucket.numbers.whole_prompt else self._ends_bias
            parts.append(work(query[:, rows], keys[:, rows], values[:, rows], t, bias, scaling))
        self.seen += length
        return parts

    def _check_whole_prompt(self, length: int) -> None:
        """Refuse what may be a piece of a prompt, taken for a whole one."""
        if length > 1 if self.seen else length == 1:
            call = "a first call brings 1 token" if length == 1 else f"a later call brings {length} tokens"
            raise CacheError(
                f"Layer {self.number}: {call}, which may be a piece of the prompt; say how long the prompt is: "
                "CompressedCache(policy, prefix=...)."
            )

    def _attend_in_prefix(
        self,
        module: nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        """Tokens of the prompt: query [B, Hq, T, D], keys and values [B, H, T, D] -> [B, T, Hq, D]."""
        start, stop = self.seen, self.seen + query.shape[2]
        if mask is not None and split_mask(mask)[1] is not None:
            raise CacheError(
                f"Layer {self.number}: the mask adds numbers to the attention (ALiBi or relative positions, say), which a "
                "CompressedCache does not; use the model's own cache."
            )
        if self.slots == self.prefix:
            self._fill_prefix(keys, values, start)
        elif stop - start != self.prefix:
            raise CacheError(
                f"Layer {self.number}: {stop - start} tokens of a prompt of {self.prefix}, which is kept as one entry; feed it "
                "in one call."
            )
        if start > 0:
            keys, values = self._prefix_so_far(stop)
            if mask is None:
                mask = torch.ones(stop - start, stop, dtype=torch.bool, device=query.device).tril(start)[None, None]
        output, _ = sdpa_attention_forward(module, query, keys, values, mask, scaling=scaling)
        self.seen = stop
        if stop == self.prefix:
            self._real = _real_tokens(mask, self.prefix)
            if self.slots < self.prefix:
                self._fold(values)
            elif self._real is not None:
                self._bias = self._nothing_added(keys, len(self._real))
                self._bias[..., : self.prefix].masked_fill_(~self._real, -torch.inf)
            self._drop_prompts(keys)
        return output

    def _drop_prompts(self, like: torch.Tensor) -> None:
        """The prompt was read to its end; `like`: keys of any shape."""
        short = [bucket for bucket in self.buckets if not bucket.numbers.whole_prompt]
        if not short:
            return
        self._ends = PromptEnds.of(self.prefix, self._real, like.device)
        self._ends_bias = self._ends.bias(like, max(bucket.total for bucket in short))
        for bucket in short:
            bucket.drop_prompt(self._ends)

    def _fill_prefix(self, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        """Keys and values [B, H, T, D] into the prefix's slots from `start` on."""
        part = start + keys.shape[2] < self.prefix  # its keys would outlive the call, with those of all heads
        for bucket in self.buckets:
            rows = slice(bucket.start, bucket.stop)
            of_bucket = self._in_buckets(keys)[:, rows], self._in_buckets(values)[:, rows]
            if bucket.numbers.whole_prompt:
                bucket.fill_prefix(*of_bucket, start)
            else:
                bucket.read_prompt(*(one.clone() if part else one for one in of_bucket))

    def _fold(self, values: torch.Tensor) -> None:
        """One entry in place of a prefix with these values [B, H, P, D], see `folded`."""
        mean, added = folded(values, self._real)
        self._fill_prefix(torch.zeros_like(mean), mean, 0)
        self._bias = self._nothing_added(values, len(values))
        self._bias[..., :1] = added

    def _nothing_added(self, like: torch.Tensor, rows: int) -> torch.Tensor:
        """0 for the logits of as many slots as the largest bucket has, and the prefix, [rows, 1, 1, slots]."""
        return like.new_zeros(rows, 1, 1, max(self.slots, *(bucket.total for bucket in self.buckets)))

    def _in_buckets(self, heads: torch.Tensor) -> torch.Tensor:
        """[B, H, ...] in the order of buckets."""
        return heads if self._order is None else heads.index_select(1, self._order)

    def _prefix_so_far(self, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, H, stop, D] of the prompt, heads in the model's order."""
        kept = [torch.cat(parts, 1) for parts in zip(*(bucket.prefix_so_far(stop) for bucket in self.buckets), strict=True)]
        if self._order is not None:
            kept = [part.index_select(1, self._order.argsort()) for part in kept]
        return kept[0], kept[1]

    def _check_mask(self, mask: torch.Tensor | None, length: int) -> None:
        """Refuse a mask that hides more than padding on the left of the prompt; all layers of a call have the same one."""
        if mask is None or getattr(mask, _CHECKED, None) == self.seen:
            return
        total = self.seen + length
        seen, bias = split_mask(mask[..., :total])
        expected = torch.ones(length, total, dtype=torch.bool, device=mask.device).tril(self.seen)[None, None]
        if self._real is not None:
            expected = expected & torch.nn.functional.pad(self._real, (0, length + self.seen - self.prefix), value=True)
        if seen.shape[-2:] != expected.shape[-2:] or bias is not None or not bool((seen == expected).all()):
            raise CacheError(
                f"Layer {self.number}: the mask of tokens {self.seen} to {total - 1} hides or weighs more than later tokens "
                "and the padding of the prompt (padding after the prompt, a sliding window, or positions), which a "
                "CompressedCache does not follow; feed rows of one length, or use the model's own cache."
            )
        setattr(mask, _CHECKED, self.seen)

    @property
    def order(self) -> tuple[int, ...]:
        """KV heads in the order of buckets, which `step` takes them in."""
        return tuple(head for bucket in self._numbers for head in bucket.heads)

    def step(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
        """One image token after the prefix, heads in the order of buckets: query [B, Hq, D], keys and values [B, H, D] ->
        output [B, Hq, D], in that order too.

        Raises:
            CacheError: no prefix was taken in, or the image is full.
        """
        t = self.seen - self.prefix
        if not self.is_initialized or not 0 <= t < self.policy.shape.geometry.tokens:
            self._check_chunk(keys[:, :, None])
            raise CacheError(f"Layer {self.number}: no prefix was taken in; call the model on the prompt first.")
        batch, heads, size = query.shape
        packed = query.view(batch, heads // self.queries_per_kv, self.queries_per_kv, size)
        return self._by_bucket(packed, keys[:, :, None], values[:, :, None], scaling).view(batch, heads, size)

    def groups(self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> list[Group]:
        """What an observer is shown: a group a bucket, query [B, Hq, T, D] and the keys it is about to attend to."""
        if self._pending is None or self.seen < self.prefix:
            keys = query if self._pending is None else self._pending[0]
            if self.seen:
                keys = torch.cat([self._prefix_so_far(self.seen)[0], keys], 2)
            return plain_groups(query, keys, mask, scaling)
        t, length = self.seen - self.prefix, query.shape[2]
        groups = []
        for bucket in self.buckets:
            kv_heads = torch.tensor(bucket.numbers.heads, device=query.device)
            heads = (kv_heads[:, None] * self.queries_per_kv + torch.arange(self.queries_per_kv, device=query.device)).flatten()
            keys, tokens, seen = bucket.looked_at(self._pending[0][:, kv_heads], t)
            seen = seen.expand(len(keys), -1, -1, -1).clone()
            if not bucket.numbers.whole_prompt and self._ends is not None:
                tokens, seen = self._ends.shown(tokens, seen, self.prefix)
            elif self._real is not None and self.slots == self.prefix:
                seen[..., : self.prefix] &= self._real.to(seen.device)
            groups.append(
                Group(
                    heads=heads.tolist(),
                    q=query[:, heads],
                    k=keys,
                    key_positions=tokens + self.prefix,
                    query_positions=torch.arange(self.seen, self.seen + length, device=query.device),
                    visible=seen,
                    scaling=scaling,
                    bias=self._added(tokens) if self.slots < self.prefix else None,
                )
            )
        return groups

    def _added(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """What is added to the logits of a folded prefix's entry, and 0 at all others of these slots: [B, 1, 1, S]."""
        return None if self._bias is None else torch.nn.functional.pad(self._bias[..., :1], (0, tokens.shape[-1] - 1))

    def get_max_length(self) -> int:
        """Tokens that can be seen in all."""
        return self.policy.prefix + self.policy.shape.geometry.tokens

    def received(self) -> torch.Tensor:
        """float32 [B, H, live], the scores so far of all live tokens, where all heads choose and are alike."""
        (bucket,) = self.buckets
        assert isinstance(bucket, HeavyHeads)
        bucket.flush_scores()
        return bucket.scores[:, :, : bucket.live]

    def kept(self) -> list[torch.Tensor]:
        """Keys and values of all buckets."""
        return [part for bucket in self.buckets for part in (bucket.keys, bucket.values)]

    def nbytes(self) -> int:
        """Bytes of every tensor kept between calls (0 before the first)."""
        return sum(t.numel() * t.element_size() for bucket in self.buckets for t in bucket.tensors())

    def reset(self) -> None:
        """Forget everything; the next call brings a new prefix."""
        self.buckets, self.seen, self.prefix, self.slots = [], 0, 0, 0
        self._real, self._bias, self._pending, self.is_initialized = None, None, None, False
        self._ends, self._ends_bias = None, None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may come several times."""
        if self._pending is not None:
            raise CacheError(f"Layer {self.number}: attention without new keys; a call of the model was interrupted.")
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        for bucket in self.buckets:
            bucket.select(indices.to(self.device))
        self._real, self._bias = (_rows(part, indices) for part in (self._real, self._bias))
        self._ends, self._ends_bias = self._ends and self._ends.rows(indices), _rows(self._ends_bias, indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: row i continues what row beam_idx[i] has seen."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after the other."""
        if self.buckets:
            rows = torch.arange(len(self.buckets[0].keys), device=self.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused, and with it assisted decoding, which takes tokens back."""
        raise CacheError(
            "CompressedCache cannot be cropped: tokens it dropped are gone; generate without an assistant or prompt lookup."
        )


def _real_tokens(mask: torch.Tensor | None, prefix: int) -> torch.Tensor | None:
    """bool [B, 1, 1, P], from what the last query of the prefix sees; None if nothing is padded."""
    if mask is None:
        return None
    seen, _ = split_mask(mask[:, :1, -1:, :prefix])
    return None if bool(seen.all()) else seen


def _rows(tensor: torch.Tensor | None, indices: torch.Tensor) -> torch.Tensor | None:
    """Some rows of what may be of all alike."""
    if tensor is None or len(tensor) == 1:
        return tensor
    return tensor.index_select(0, indices.to(tensor.device))


def check_prefix(policy: Policy, prefix: int, prompt: str | None = None) -> None:
    """A prompt longer than the policy assumes is refused where it breaks the byte limit that the policy was made for.

    Args:
        policy: what is kept, with the limit.
        prefix: tokens of the prompt, padding included.
        prompt: its words, for the sentence.

    Raises:
        CacheError: with the bytes.
    """
    limit = policy.limit
    if limit is None or prefix <= policy.prefix:
        return
    needed = limit.taken_by(policy, prefix)
    if needed > limit.bytes:
        words = "" if prompt is None else f" ('{prompt}')"
        raise CacheError(
            f"A prompt of {prefix} tokens{words} takes {needed:,} bytes under this policy, which was made for prompts of "
            f"{policy.prefix} and at most {limit.bytes:,} bytes: shorten the prompt or search with a larger limit."
        )
