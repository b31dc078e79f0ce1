"""One token through a Llama decoder and a compressed cache, at the speed of its weights.

The same weights and the same numbers as the model's own forward, but for rounding; what differs is the way there:

- activations are columns [C, B]. `weight @ x` with few columns reads a weight matrix 1.6 times as fast on a CPU as
  `x @ weight.T` with few rows does (bfloat16, 16 rows); and a head's numbers lie together, so that putting heads in the
  order of buckets costs nothing beside the transposition to the cache's layout;
- work tensors are allocated once for a batch; rotary angles once for all positions;
- no mask is built: what may be seen is the cache's affair.

Whether it gives what the model gives is tried once before it is relied on (`step_for`).
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from headscope.models import ImageModel, is_observed
from headscope.policy import Policy
from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.decoders.transformers import TransformersDecoder

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Largest difference from the model's own forward, relative to the largest number it gives.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01, torch.float64: 1e-8}
_Seen = tuple[torch.dtype, torch.device, tuple[object, ...]]
_verdicts: weakref.WeakKeyDictionary[nn.Module, tuple[_Seen, LlamaStep | None]] = weakref.WeakKeyDictionary()


class LlamaCpuDecoder(TransformersDecoder):
    """See `Decoder`: prompts by the model's own forward, image tokens by `LlamaStep`. Takes what `step_for` takes."""

    name: ClassVar[str] = "llama_cpu"

    def __init__(self, model: ImageModel, policy: Policy | None) -> None:
        super().__init__(model, policy)
        self._step = step_for(model)

    @classmethod
    def lacking(cls, model: ImageModel, policy: Policy | None) -> str | None:
        """See `Decoder.lacking`."""
        if policy is None:
            return "needs a policy"
        if policy.rows_at_once:
            return "feeds one token a step, and this policy generates rows at once"
        return None if step_for(model) is not None else "needs a plain Llama decoder without hooks or observers"

    def step(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """See `Decoder.step`."""
        # Another thread began to observe the decoder after this one was chosen, or nothing has allocated the cache yet.
        if self._step is None or self.prefix + t == 0:
            return super().step(tokens, t)
        assert isinstance(self.cache, CompressedCache)
        return self._step(self._embedded(tokens)[:, 0], self.prefix + t, self.cache)


def step_for(model: ImageModel) -> LlamaStep | None:
    """The fast step of a model, or None where it has none: another kind of decoder, layers that are not just what the step
    computes (adapters, quantised weights), hooks or an observer on it, or a result that is not the model's own.

    A verdict holds for the modules that it was found on: where one was exchanged, it is found anew.
    """
    decoder: Any = model.decoder
    if not _may_step(model):
        return None
    seen = (model.dtype, model.device, parts_of(decoder))
    if decoder not in _verdicts or _verdicts[decoder][0] != seen:
        step = plain_step(model)
        _verdicts[decoder] = (seen, step if step is not None and _agrees(step, model) else None)
    return _verdicts[decoder][1]


def plain_step(model: ImageModel) -> LlamaStep | None:
    """The fast step of a model whose modules are just what the step computes, without a trial; None where they are not."""
    if not _may_step(model):
        return None
    decoder: Any = model.decoder
    step = LlamaStep(decoder)
    return step if step.fits else None


def _may_step(model: ImageModel) -> bool:
    """Whether the decoder is plain, nobody watches it, and it computes in its weights' dtype."""
    decoder = model.decoder
    if not isinstance(decoder, LlamaModel) or _watched(decoder) or not _is_plain(decoder):
        return False
    return not torch.is_autocast_enabled(model.device.type)


class LlamaStep:
    """The decoding step of a transformers `LlamaModel`, on its own parameters.

    Args:
        decoder: that model.

    Attributes:
        fits: whether this is a decoder that the step knows: SiLU, rotary angles that depend on nothing but the position.
    """

    def __init__(self, decoder: LlamaModel) -> None:
        config: Any = decoder.config
        self.layers: list[Any] = list(decoder.layers)
        self.norm = decoder.norm
        self.query_heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        weight: torch.Tensor = self.layers[0].self_attn.q_proj.weight
        self.size = weight.shape[0] // self.query_heads
        self.dtype, self.device = weight.dtype, weight.device
        self.scaling = float(self.layers[0].self_attn.scaling)
        rotary: Any = decoder.rotary_emb
        plain = getattr(rotary, "rope_type", "default") in ("default", "linear", "llama3", "yarn")
        self.fits = bool(config.hidden_act == "silu" and plain)
        positions = torch.arange(config.max_position_embeddings, device=self.device)[None]
        with torch.inference_mode():
            cos, sin = rotary(torch.empty(0, dtype=self.dtype, device=self.device), positions)
        half = self.size // 2
        self._cos, self._sin = (
            cos[0],
            torch.cat([-sin[0, :, :half], sin[0, :, half:]], 1),
        )  # [positions, D], sign of a half turned
        self._order: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._work = threading.local()  # each thread's work tensors by name: several may generate at once

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and signed sine [positions, D] of all positions."""
        return self._cos.contiguous(), self._sin.contiguous()

    @torch.inference_mode()
    def __call__(self, embeds: torch.Tensor, position: int, cache: CompressedCache) -> torch.Tensor:
        """embeds [B, C] of the token at `position` (prefix and padding counted) -> hidden [B, C]."""
        batch = len(embeds)
        kept = self._tensor("kept", embeds.shape[1], batch)
        kept.copy_(embeds.t())
        cos, sin = self._cos[position][:, None], self._sin[position][:, None]
        for block, layer in zip(self.layers, cache.compressed_layers, strict=True):
            attention, mlp = block.self_attn, block.mlp
            x = _normed(kept, block.input_layernorm)
            heads = self._projected(x, attention)  # [Hq + 2 H, D, B]
            turned = heads[: self.query_heads + self.kv_heads]
            half = self.size // 2
            swapped = torch.cat([turned[:, half:], turned[:, :half]], 1)
            torch.addcmul(turned.mul_(cos), swapped, sin, out=turned)
            order, back = self._orders(layer.order)
            ordered = heads.permute(2, 0, 1).index_select(1, order)  # [B, Hq + 2 H, D]
            out = layer.step(
                ordered[:, : self.query_heads],
                ordered[:, self.query_heads : -self.kv_heads],
                ordered[:, -self.kv_heads :],
                self.scaling,
            )
            columns = out.permute(1, 2, 0).index_select(0, back).view(-1, batch)
            _add(kept, attention.o_proj, columns)
            x = _normed(kept, block.post_attention_layernorm)
            gate, up = _left(mlp.gate_proj, x), _left(mlp.up_proj, x)
            _add(kept, mlp.down_proj, functional.silu(gate, inplace=True).mul_(up))
        return _normed(kept, self.norm).t()

    def _projected(self, x: torch.Tensor, attention: Any) -> torch.Tensor:
        rows, at = (self.query_heads + 2 * self.kv_heads) * self.size, 0
        heads = self._tensor("heads", rows, x.shape[1])
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            part = heads[at : at + len(linear.weight)]
            if linear.bias is None:
                torch.mm(linear.weight, x, out=part)
            else:
                torch.addmm(linear.bias[:, None], linear.weight, x, out=part)
            at += len(linear.weight)
        return heads.view(-1, self.size, x.shape[1])

    def _tensor(self, name: str, rows: int, batch: int) -> torch.Tensor:
        work: dict[str, torch.Tensor] = self._work.__dict__
        found = work.get(name)
        if found is None or found.shape != (rows, batch):
            found = work[name] = torch.empty(rows, batch, dtype=self.dtype, device=self.device)
        return found

    def _orders(self, heads: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Query, key and value heads in the order of buckets, and the query heads back."""
        if heads not in self._order:
            groups = self.query_heads // self.kv_heads
            kv = torch.tensor(heads, device=self.device)
            query = (kv[:, None] * groups + torch.arange(groups, device=self.device)).flatten()
            all_heads = torch.cat([query, kv + self.query_heads, kv + self.query_heads + self.kv_heads])
            self._order[heads] = (all_heads, query.argsort())
        return self._order[heads]


def _left(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """linear of columns [C, B] -> [O, B]."""
    return torch.mm(linear.weight, x) if linear.bias is None else torch.addmm(linear.bias[:, None], linear.weight, x)


def _add(kept: torch.Tensor, linear: nn.Linear, x: torch.Tensor) -> None:
    kept.add_(_left(linear, x))


def _normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """LlamaRMSNorm of columns: in float32, the weight in the model's dtype."""
    wide = x.float()
    factor = wide.square().mean(0).add_(norm.variance_epsilon).rsqrt_()
    return (wide * factor).to(x.dtype).mul_(norm.weight[:, None])


def _watched(decoder: LlamaModel) -> bool:
    """Whether there are hooks on the decoder's modules, or an observer of its attention."""
    if is_observed(decoder) or _global_forward_hooks or _global_forward_pre_hooks:
        return True
    tables = (table for module in decoder.modules() for table in (module._forward_hooks, module._forward_pre_hooks))
    hooks = (hook for table in tables for hook in table.values())
    # Who once asked a model for its attentions has left hooks of transformers there; they wait for the next who asks.
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)


def _is_plain(decoder: LlamaModel) -> bool:
    """Whether every module is just the class that the step computes: no adapter around it, no quantised or wrapped weight, no
    `forward` of its own."""
    if any("forward" in vars(module) for module in decoder.modules()):
        return False
    blocks = [part for layer in decoder.layers for part in (layer, layer.self_attn, layer.mlp)]
    norms = [norm for layer in decoder.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    linears = [getattr(block, name, None) for block in blocks for name in _LINEARS if hasattr(block, name)]
    return (
        all(type(block) in (LlamaDecoderLayer, LlamaAttention, LlamaMLP) for block in blocks)
        and all(type(norm) is LlamaRMSNorm for norm in [*norms, decoder.norm])
        and all(type(linear) is nn.Linear and type(linear.weight) is nn.Parameter for linear in linears)
    )


def parts_of(decoder: LlamaModel) -> tuple[object, ...]:
    """What a verdict hangs on beside weights, which the step reads anew: which modules there are and what they compute, the
    scaling of each layer, and the rotary angles."""
    rotary: Any = decoder.rotary_emb
    modules = ((id(module), type(module).forward) for module in decoder.modules())
    layers: list[Any] = list(decoder.layers)
    scalings = (float(layer.self_attn.scaling) for layer in layers)
    angles = (rotary.inv_freq.data_ptr(), rotary.inv_freq._version, rotary.attention_scaling)
    return (*modules, *scalings, *angles)


@torch.inference_mode()
def _agrees(step: LlamaStep, model: ImageModel) -> bool:
    """Two tokens after a prefix of which one row is padded: this way and the model's."""
    shape, device = model.shape, model.device
    prefix = 3
    policy = Policy.uniform(shape, window=shape.geometry.tokens - 1, stride=1, prefix=prefix)
    generator = torch.Generator().manual_seed(0)
    width = step.layers[0].self_attn.q_proj.weight.shape[1]
    embeds = torch.randn(2, prefix + 2, width, generator=generator).to(device, step.dtype)
    mask = torch.ones(2, prefix + 2, dtype=torch.int64, device=device)
    mask[0, 0] = 0
    found = []
    for fast in (False, True):
        cache = CompressedCache(policy, prefix=prefix)
        with compressed(model, policy):
            model.forward(embeds[:, :prefix], mask[:, :prefix], cache)
            for t in (prefix, prefix + 1):
                one = embeds[:, t : t + 1]
                last = step(one[:, 0], t, cache) if fast else model.forward(one, mask[:, : t + 1], cache)[:, 0]
        found.append(last.float())
    return bool((found[0] - found[1]).abs().max() <= TOLERANCE[step.dtype] * found[0].abs().max())
