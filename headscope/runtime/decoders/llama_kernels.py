"""One token through a Llama decoder on a GPU: eight launches a layer, the residual stream kept in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headscope.runtime.decoders.flat_attention import KernelScratch, attend_flat, choose_flat, power
from headscope.runtime.decoders.flat_cache import FlatLayer
from headscope.runtime.decoders.llama_cpu import LlamaStep

_ACROSS = 1024  # numbers of a row that a program of SiLU takes


@dataclass(frozen=True)
class Products:
    """Linear layers that read the same numbers, as one product.

    Attributes:
        weight: [sum of outputs, C]; the layers' own weights are views of it.
        bias: [sum of outputs], or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C] -> [B, outputs of all layers]."""
        if self.bias is None:
            return torch.mm(x, self.weight.t())
        return torch.addmm(self.bias, x, self.weight.t())

    def add_to(self, kept: torch.Tensor, x: torch.Tensor) -> None:
        """Add the product of x to the residual stream, in the product itself."""
        kept.addmm_(x, self.weight.t())
        if self.bias is not None:
            kept.add_(self.bias)


def merged(linears: Sequence[nn.Linear]) -> Products:
    """Layers as one product. Their weights become views of one tensor, in which they take no more memory than before.

    Args:
        linears: with inputs of one width.
    """
    weights = [linear.weight for linear in linears]
    with torch.inference_mode(False), torch.no_grad():
        if not _lie_together(weights):
            whole = torch.cat([weight.detach() for weight in weights])
            for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
                weight.data = part
        first = weights[0].detach()
        rows = sum(len(weight) for weight in weights)
        whole = first.as_strided((rows, first.shape[1]), (first.shape[1], 1), first.storage_offset())
        biases = [linear.bias for linear in linears]
        if all(bias is None for bias in biases):
            return Products(whole, None)
        zeros = [weight.new_zeros(len(weight)) for weight in weights]
        return Products(whole, torch.cat([zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)]))


def _lie_together(weights: Sequence[torch.Tensor]) -> bool:
    """Whether each begins where the one before ends."""
    ends = [weight.data_ptr() + weight.numel() * weight.element_size() for weight in weights]
    one_storage = len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    follow = all(end == weight.data_ptr() for end, weight in zip(ends, weights[1:], strict=False))
    return one_storage and follow and all(weight.is_contiguous() for weight in weights)


class LlamaKernels:
    """A decoding step on a GPU, on the decoder's own parameters.

    Args:
        step: the decoder as the CPU's step knows it.
    """

    def __init__(self, step: LlamaStep) -> None:
        self._blocks = [_Block(block) for block in step.layers]
        self._norm = LlamaNorm(step.norm)
        self._angles = step.tables()
        self._scaling = step.scaling

    def __call__(self, x: torch.Tensor, layers: Sequence[FlatLayer], scratch: KernelScratch, now: torch.Tensor) -> torch.Tensor:
        """Take token `now` through the decoder.

        Args:
            x: embeddings [B, C], contiguous; overwritten.
            layers: the caches.
            scratch: of the kernels.
            now: int32 [1], number of the token.

        Returns:
            hidden [B, C].
        """
        for block, layer in zip(self._blocks, layers, strict=True):
            out = attend_flat(layer, scratch, block.qkv(block.before(x)), self._angles, now, self._scaling)
            block.out.add_to(x, out)
            block.down.add_to(x, silu_times_up(block.gate_up(block.between(x))))
        return self._norm(x)

    @staticmethod
    def choose(layers: Sequence[FlatLayer], scratch: KernelScratch, now: torch.Tensor) -> None:
        """The stride end after token `now`, in all layers."""
        for layer in layers:
            choose_flat(layer, scratch, now)


class _Block:
    """The weights of a layer."""

    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.before, self.between = LlamaNorm(block.input_layernorm), LlamaNorm(block.post_attention_layernorm)
        self.qkv = merged([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out, self.down = merged([attention.o_proj]), merged([mlp.down_proj])
        self.gate_up = merged([mlp.gate_proj, mlp.up_proj])


class LlamaNorm:
    """LlamaRMSNorm in one launch."""

    def __init__(self, norm: Any) -> None:
        self._weight, self._epsilon = norm.weight.detach(), float(norm.variance_epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C], contiguous."""
        from headscope.runtime.decoders.kernels import layers as kernels

        out, size = torch.empty_like(x), x.shape[1]
        kernels.rms_norm[(len(x),)](x, self._weight, out, self._epsilon, size=size, wide=power(size))
        return out


def silu_times_up(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [B, 2 * I] -> silu(gate) * up [B, I]."""
    from headscope.runtime.decoders.kernels import layers as kernels

    size = gate_up.shape[1] // 2
    out = gate_up.new_empty(len(gate_up), size)
    block = min(_ACROSS, power(size))
    kernels.silu_times_up[(len(out), -(-size // block))](gate_up, out, size, block=block)
    return out
