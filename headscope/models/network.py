"""What adapters around a causal network of transformers share: where it is, its forward, and a look at its heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache

from headscope.errors import ModelError
from headscope.models.attention import observe
from headscope.models.cache_name import cache_name
from headscope.models.groups import Group
from headscope.models.loading import Placed
from headscope.policy import ModelShape


class NetworkModel:
    """The part of an `ImageModel` (see protocol.py) that networks of transformers answer alike in all families.

    Args:
        network: the network, with input and output embeddings and `get_decoder`.
        name: what the user called it.

    Attributes:
        network: it, in evaluation mode.
        decoder: what is traced and compressed.
        counts_padding: whether positions count the padding too, as the fast decoders do.
        placed: where the tensors of its checkpoint went; None where another's code loaded it.
    """

    shape: ModelShape
    counts_padding = False
    placed: Placed | None = None

    def __init__(self, network: Any, name: str) -> None:
        self.network = network.eval()
        self.name = name
        self.decoder: nn.Module = network.get_decoder()
        self._cache = cache_name(self.decoder.forward)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's weights."""
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return next(self.decoder.parameters()).device

    @torch.inference_mode()
    def probe(self, kind: str) -> tuple[dict[str, Any], int]:
        """Number of layers and heads, as ModelShape names them, and the vocabulary, found by running three tokens.

        What the network says of two of them must come out of `forward` and its output embeddings, and not depend on the third.

        Args:
            kind: what it is to be driven as, for messages.

        Raises:
            ModelError: it can't be driven, or its attention is not what the cache computes.
        """
        seen: dict[int, dict[str, int]] = {}

        def note(layer: int, groups: list[Group]) -> None:
            q, k = groups[0].q, groups[0].k
            seen[layer] = {"query_heads": q.shape[1], "kv_heads": k.shape[1], "head_dim": k.shape[3]}

        ids = torch.arange(3, device=self.device)[None]
        try:
            expected = self.network(input_ids=ids[:, :2]).logits
            with observe(self.decoder, note):
                hidden = self.forward(self.embed_prefix(ids), torch.ones_like(ids))
            found = self.network.get_output_embeddings()(hidden)[:, :2]
            apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny))
        except Exception as error:  # a network of an unknown kind may fail in any way
            raise ModelError(f"{self.name}: cannot be driven as {kind} ({error!r}).") from error
        config = self.network.config
        # What the cache's attention does not compute.
        other = getattr(config, "attn_logit_softcapping", None) or any(n.endswith("sinks") for n in self.decoder.state_dict())
        alike = sorted(seen) == list(range(config.num_hidden_layers)) and all(layer == seen[0] for layer in seen.values())
        if not alike or other or not apart < 0.05:  # bfloat16 rounds less than that
            raise ModelError(
                f"{self.name}: a '{config.model_type}' model whose attention or logits headscope does not reproduce; expected "
                "plain causal attention, the same in every layer."
            )
        return {"layers": len(seen), **seen[0]}, expected.shape[-1]

    def embed_prefix(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, P] -> [B, P, C]."""
        return self.network.get_input_embeddings()(ids)

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None = None) -> torch.Tensor:
        """See `ImageModel.forward`. Positions leave the padding out, for learned ones are not relative, as rotary ones are."""
        counted = mask is None or self.counts_padding
        positions = None if counted else (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]  # type: ignore[union-attr]
        past = {self._cache: cache, "use_cache": cache is not None}
        return self.decoder(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **past).last_hidden_state

    def forward_at(
        self,
        embeds: torch.Tensor,
        places: torch.Tensor,
        mask: torch.Tensor,
        seen: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """As `forward`, of tokens at any places: rows at once need it, and a model of one's own may do without.

        Args:
            embeds: [B, T, C].
            places: int64 [T], in the sequence: tokens of the prompt from 0, padding included, image token t at P + t.
            mask: int64 [B, P] of the prompt, 0 at the padding.
            seen: bool [1 or B, 1, T, S], which keys of the cache and then of these tokens each sees; None: the cache says.
            cache: what holds the past, None where there is none.
        """
        positions = places.expand(len(embeds), -1)
        if not self.counts_padding:
            positions = (positions - (1 - mask).sum(1, keepdim=True)).clamp(min=0)
        shape = (1, 1, 1, 1) if seen is None else seen.shape
        hides = torch.zeros(shape, dtype=self.dtype, device=self.device)
        if seen is not None:
            hides.masked_fill_(~seen, torch.finfo(self.dtype).min)
        past = {self._cache: cache, "use_cache": cache is not None}
        return self.decoder(inputs_embeds=embeds, attention_mask=hides, position_ids=positions, **past).last_hidden_state
