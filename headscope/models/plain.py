"""A network in plain PyTorch, from tokens to logits, without a cache of its own: driven token by token through any cache.

Its attention, `scaled_dot_product_attention` or `nn.MultiheadAttention`, is taken over while headscope runs it: the n-th call
of a forward is layer n, and goes through transformers' attention interface, where tracing and the compressed cache plug in.
All else that it computes must treat every token by itself. So a network that counts positions itself is fed a row as long as
the sequence so far, in which the new tokens stand at their places, and what it makes of the other places is not looked at: a
pass over the whole row for every token, as without a cache, while keys and values are those that the cache keeps. A network
that is told positions, `forward(tokens, positions)`, is fed the new tokens alone.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import Cache, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from headscope.errors import ModelError
from headscope.facts import said
from headscope.models.intercept import as_written
from headscope.models.multi_head import given, heads_of

_POSITIONS = ("positions", "position_ids")
_WRITE = "write its attention as scaled_dot_product_attention(q, k, v, is_causal=True)"
# Between the network's own forward and its tokens in two calls, relative to the largest logit.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_LOOSE = 0.05  # of 16 bits


@dataclass(frozen=True)
class Scores:
    """What a forward gives.

    Attributes:
        logits: [B, T, words].
    """

    logits: torch.Tensor

    @property
    def last_hidden_state(self) -> torch.Tensor:
        """The logits, for a plain network shows no states before them."""
        return self.logits


class _Layer(nn.Module):
    """Stands for one attention layer, as transformers' attention functions and observers know one."""

    is_causal = True

    def __init__(self, number: int, config: Any) -> None:
        super().__init__()
        self.layer_idx, self.config, self.num_key_value_groups = number, config, 1


class PlainNetwork(nn.Module):
    """A network as `NetworkModel` drives those of transformers. Its embeddings are the tokens, its hidden states the logits.

    Args:
        network: of tokens int64 [B, T], or of tokens and `positions` int64 [B, T], to logits [B, T, words].
        name: for messages.
        trial: int64 [n, T], sequences as long as can be, to try it on.

    Raises:
        ModelError: it can't be driven, or tokens see each other otherwise than by causal attention that can be taken over.
    """

    def __init__(self, network: nn.Module, name: str, trial: torch.Tensor) -> None:
        super().__init__()
        self.network: Any = getattr(network, "_orig_mod", network).eval()
        self._compiled = any(hasattr(part, "_orig_mod") for part in self.network.modules())
        self.name = name
        names = inspect.signature(self.network.forward).parameters
        self._told = next((one for one in _POSITIONS if one in names), None)
        self.whole_rows = self._told is None  # it counts positions itself
        self.config: Any = SimpleNamespace(_attn_implementation="sdpa", model_type=type(self.network).__name__)
        self.config.max_position_embeddings, self.config.num_hidden_layers = trial.shape[1], 0
        self.attentions = nn.ModuleList()
        first = next(self.network.parameters(), None)
        if first is None:
            raise ModelError(f"{name}: {self.config.model_type} has no parameters; expected a network with its weights.")
        self._try(trial.to(first.device))

    def get_decoder(self) -> PlainNetwork:
        """The whole."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Tokens [B, T] -> [B, T, 1]."""
        return nn.Unflatten(-1, (-1, 1))

    def get_output_embeddings(self) -> nn.Module:
        """Logits are logits."""
        return nn.Identity()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
    ) -> Scores:
        """The network's own forward of `input_ids`, or one through `cache` of the next tokens.

        Args:
            input_ids: int64 [B, T].
            inputs_embeds: int64 [B, T, 1], the next tokens.
            attention_mask: int64 [B, past + T], 0 at the padding on the left; or [1 or B, 1, T, past + T], added to attention.
            position_ids: int64 [B, T], taken with a mask of the second kind; they follow from one of the first.
            cache: what holds the past.
            use_cache: not used.
        """
        if input_ids is not None:
            return Scores(
                self._logits(input_ids, torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids))
            )
        assert inputs_embeds is not None
        tokens = inputs_embeds[..., 0]
        if attention_mask is not None and attention_mask.dim() == 4:
            assert position_ids is not None
            return self._anywhere(tokens, position_ids, attention_mask, cache)
        past = 0 if cache is None else cache.get_seq_length()
        length = past + tokens.shape[1]
        mask = tokens.new_ones(len(tokens), length) if attention_mask is None else attention_mask
        # Padding stands behind what a row has so far, where nothing stands yet.
        real = mask.cumsum(1) - 1
        places = torch.where(mask > 0, real, real[:, -1:] + (1 - mask).cumsum(1))[:, past:]
        later = torch.ones(length - past, length, dtype=torch.bool, device=tokens.device).tril(past)
        seen = (later & (mask[:, None] > 0))[:, None] if past or attention_mask is not None else None
        if self._told is not None:
            with _TakenOver(self, tokens, None, seen, cache):
                return Scores(self._logits(tokens, places))
        row = tokens.new_zeros(len(tokens), length).scatter(1, places, tokens)
        with _TakenOver(self, tokens, places, seen, cache):
            found = self._logits(row, places)
        return Scores(found.gather(1, places[..., None].expand(-1, -1, found.shape[2])))

    def _anywhere(self, tokens: torch.Tensor, places: torch.Tensor, added: torch.Tensor, cache: Cache | None) -> Scores:
        """Tokens [B, T] at places [B, T], none twice, with the mask `added` to their attention."""
        if self._told is not None:
            with _TakenOver(self, tokens, None, added, cache):
                return Scores(self._logits(tokens, places))
        row = tokens.new_zeros(len(tokens), int(places.max()) + 1).scatter(1, places, tokens)
        with _TakenOver(self, tokens, places, added, cache):
            found = self._logits(row, places)
        return Scores(found.gather(1, places[..., None].expand(-1, -1, found.shape[2])))

    def _logits(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        with as_written() if self._compiled else nullcontext():  # compiled code calls no function that could be taken over
            found = self.network(tokens) if self._told is None else self.network(tokens, **{self._told: places})
        found = found[0] if isinstance(found, tuple) else getattr(found, "logits", found)
        if not isinstance(found, torch.Tensor) or found.shape[:2] != tokens.shape or found.dim() != 3:
            what = f"{tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
            raise ModelError(
                f"{self.name}: {self.config.model_type} gave {what} for tokens {tuple(tokens.shape)}; expected logits "
                "[B, T, words] of every token."
            )
        return found

    @torch.inference_mode()
    def _try(self, trial: torch.Tensor) -> None:
        """Count its layers, and compare its own forward with the same tokens in two calls."""
        half, cache = trial.shape[1] // 2, DynamicCache()
        embeds = self.get_input_embeddings()(trial)
        try:
            own = self(trial).logits
            with _Counting() as counted:
                self(trial)
            self.config.num_hidden_layers = counted.calls
            self.attentions.extend(_Layer(number, self.config) for number in range(counted.calls))
            if not counted.calls:
                raise ModelError(
                    f"{self.name}: {self.config.model_type} made no call of scaled_dot_product_attention, so its attention can "
                    f"be neither seen nor compressed: {_WRITE}."
                )
            parts = [self(inputs_embeds=part, cache=cache).logits for part in (embeds[:, :half], embeds[:, half:])]
        except ModelError:
            raise
        except Exception as error:  # a network of an unknown kind may fail in any way
            raise ModelError(
                f"{self.name}: {self.config.model_type} cannot be driven: it takes no {trial.shape[1]} tokens, those before an "
                f"image and its own, or fails token by token ({type(error).__name__}: {said(error)})."
            ) from error
        if not bool(own.isfinite().all()):
            raise ModelError(
                f"{self.name}: {self.config.model_type} gives NaN or infinite logits; look for such numbers in its weights."
            )
        apart = float((torch.cat(parts, 1) - own).abs().max() / own.abs().max().clamp(min=torch.finfo(own.dtype).tiny))
        if not apart <= _TOLERANCE.get(own.dtype, _LOOSE):
            raise ModelError(
                f"{self.name}: {self.config.model_type} gives other logits token by token ({apart:.2g} of the largest apart): "
                "expected causal attention to all tokens before, without a mask or weights of its own, and nothing else that "
                f"looks at other tokens; {_WRITE}, and give `forward` an argument `positions` where it counts them otherwise "
                "than from 0."
            )


class _Counting(TorchFunctionMode):
    """Counts the calls of PyTorch's attention functions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func in (functional.scaled_dot_product_attention, functional.multi_head_attention_forward)
        return func(*args, **(kwargs or {}))


class _TakenOver(TorchFunctionMode):
    """Takes over the attention of one forward, which only has to be causal: `_try` found that this gives the same.

    Args:
        owner: the network.
        tokens: int64 [B, T], the new ones.
        places: int64 [B, T], where the new tokens stand in what it is fed; None: it is fed them alone.
        seen: bool [B, 1, T, past + T], or None for plain causal attention of new tokens alone.
        cache: what holds the past.
    """

    def __init__(
        self,
        owner: PlainNetwork,
        tokens: torch.Tensor,
        places: torch.Tensor | None,
        seen: torch.Tensor | None,
        cache: Cache | None,
    ) -> None:
        super().__init__()
        self.owner, self.batch, self.places, self.seen, self.cache = owner, len(tokens), places, seen, cache
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is functional.multi_head_attention_forward:
            of = given(*args, **(kwargs or {}))
            out = self._attend(*heads_of(of)).permute(2, 0, 1, 3).flatten(2)  # [L, B, E]
            out = functional.linear(out, of["out_proj_weight"], of["out_proj_bias"])
            return (out if of["query"].dim() == 3 else out[:, 0]), None
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """[B, H, L, D], or without H or with it in B, as it came."""
        if self.calls >= len(self.owner.attentions):
            raise ModelError(
                f"{self.owner.name}: attends more often than before, {self.calls} times; expected as often every time."
            )
        layer: Any = self.owner.attentions[self.calls]
        self.calls += 1
        flat = query.dim() == 3
        if flat:
            query, key, value = (part.unflatten(0, (self.batch, -1)) for part in (query, key, value))
        q, k, v = (part if self.places is None else part.gather(2, self._index(part)) for part in (query, key, value))
        if self.cache is not None:
            k, v = self.cache.update(k, v, layer.layer_idx)
        layer.num_key_value_groups = query.shape[1] // key.shape[1]
        attend = ALL_ATTENTION_FUNCTIONS[self.owner.config._attn_implementation]
        out = attend(layer, q, k, v, self.seen, scaling=scale)[0].transpose(1, 2)
        if self.places is not None:
            out = query.new_zeros(query.shape[:3] + out.shape[3:]).scatter(2, self._index(out), out)
        return out.flatten(0, 1) if flat else out

    def _index(self, heads: torch.Tensor) -> torch.Tensor:
        """Where the new tokens stand in heads [B, H, L, D]."""
        assert self.places is not None
        return self.places[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3])
