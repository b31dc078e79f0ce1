"""CompressedCache: a transformers `Cache` that is as small as its policy says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache

from headscope.errors import CacheError, PolicyMismatch
from headscope.models import ImageModel, expect_decoder, expect_model, through_cache
from headscope.policy import Policy
from headscope.runtime.cache_layer import CompressedLayer


class CompressedCache(Cache):
    """A cache that keeps, for every layer and head, what the policy says; works in `model.generate(cache=...)`.

    Use it inside `with compressed(model, policy)`. Buckets are allocated at the first call, in the dtype and on the device
    of the keys, for its batch (both guidance streams are rows of it) and its prefix.

    Args:
        policy: what to keep.
        batch: rows that the first call is expected to bring; refused where it differs.
        prefix: tokens of the prompt, padding included; it may then come in chunks. Without it the first call is taken for the
            whole prompt, and a network of transformers, whose `generate` may feed a prompt in chunks, must bring one token a
            call afterwards. (All of a prompt but one token, and then that one, look like a prompt and an image token: say
            its length.)
        dtype: of the keys that the first call is expected to bring.
        device: of those keys.

    Raises:
        PolicyMismatch: a head's kind of score needs a table that the policy has not.
        CacheError: the policy generates rows at once, which takes more than a cache.
    """

    kind: ClassVar[type[CompressedLayer]] = CompressedLayer

    def __init__(
        self,
        policy: Policy,
        *,
        batch: int | None = None,
        prefix: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        policy.check_tables()
        if policy.rows_at_once and self.kind is CompressedLayer:
            raise CacheError(
                f"This policy begins a row {policy.lead} columns after the one above, several tokens a step; CompressedCache, "
                "as beams and transformers' generate() feed it, takes one: use headscope.generate, or a policy with a lead of "
                f"{policy.shape.geometry.row_length}."
            )
        self.policy = policy
        self.expected = (batch, dtype, None if device is None else torch.device(device).type)
        self.compressed_layers = [self.kind(policy, number, prefix) for number in range(policy.shape.layers)]
        super().__init__(layers=list(self.compressed_layers))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the keys and values of the next T tokens of a layer; a layer of the model calls it.

        Args:
            key_states: [B, H, T, D], H the KV heads, with positions as the layer's own attention has them.
            value_states: [B, H, T, D], likewise.
            layer_idx: number of the layer, from 0.
            args: of transformers' interface, not used.
            kwargs: likewise.

        Returns:
            Keys and values [B, H, T, D] of these tokens alone; `compressed`'s attention finds what was kept by the keys.

        Raises:
            CacheError: see `CompressedLayer.update`; or a first call of another batch, dtype or device than was said.
        """
        if layer_idx == 0 and not self.compressed_layers[0].is_initialized:
            found = (key_states.shape[0], key_states.dtype, key_states.device.type)
            for name, want, have in zip(("batch", "dtype", "device"), self.expected, found, strict=True):
                if want is not None and want != have:
                    raise CacheError(f"CompressedCache was made for {name} {want}, the first call brings {have}.")
        return self.compressed_layers[layer_idx].update(key_states, value_states)

    def nbytes(self) -> int:
        """Bytes of all tensors kept between calls: keys, values, scores, positions. 0 before the first call. Tables of scores,
        which all caches of a policy share, are the policy's: `Policy.table_bytes`.

        Those of the policy, but between two calls of a prompt that comes in several: heads that will keep its first and last
        token hold all of it until it was read.
        """
        return sum(layer.nbytes() for layer in self.compressed_layers)


@contextmanager
def compressed(model: ImageModel | nn.Module, policy: Policy) -> Iterator[None]:
    """Let `model` attend through a `CompressedCache` inside the block; its own attention is back afterwards.

    Args:
        model: an `ImageModel`, or a network of transformers, of which only layers and heads can be checked.
        policy: what to keep.

    Raises:
        ModelError: neither of these.
        PolicyMismatch: the policy is for another architecture or image.
    """
    with through_cache(_decoder(model, policy), may_chunk=isinstance(model, nn.Module)):
        yield


def _decoder(model: ImageModel | nn.Module, policy: Policy) -> nn.Module:
    wanted = policy.shape
    if not isinstance(model, nn.Module):
        expect_model(model, "compressed", ("shape", "decoder"))
        if wanted.architecture != model.shape.architecture:
            raise PolicyMismatch(
                f"The policy is for {wanted.name} ({wanted.layers} layers, {wanted.kv_heads} KV heads), not "
                f"for {model.name} ({model.shape.layers} layers, {model.shape.kv_heads} KV heads): search one for this model."
            )
        return model.decoder
    network: Any = model
    inner: Any = getattr(network, "model", network)
    decoder = getattr(inner, "language_model", None) or getattr(network, "get_decoder", lambda: network)()
    expect_decoder(decoder, "compressed")
    config = decoder.config
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    found = (config.num_hidden_layers, config.num_attention_heads, kv_heads)
    if found != (wanted.layers, wanted.query_heads, wanted.kv_heads):
        raise PolicyMismatch(
            f"The policy is for {wanted.name} ({wanted.layers} layers, {wanted.query_heads} and {wanted.kv_heads} heads); "
            f"this {type(model).__name__} has {found[0]}, {found[1]} and {found[2]}: search one for this model."
        )
    return decoder
