"""Causal attention for training. On a CPU only the lower triangle, in blocks that fit a cache, weights kept for the way back:
PyTorch's own takes a mask for the padding of prompts, so it also multiplies what the mask hides, and its backward computes the
weights again. On a GPU PyTorch's own without a mask, since rows are moved so that padding comes last.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

BLOCK = 128  # queries that are multiplied at once with all keys up to the last of them
_NAME = "headscope_blocks"


class CausalBlocks(torch.autograd.Function):
    """Attention of queries, keys and values [b, h, T, d], each token seeing itself and what stands before it.

    `first`, one a row: the first token that is real; what stands before it is padding, which no real token sees. What comes out
    at the padding means nothing.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: FunctionCtx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, first: list[int], scaling: float
    ) -> torch.Tensor:
        output = torch.zeros_like(query)
        length = query.shape[2]
        above = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu_(1)
        kept: list[torch.Tensor] = []
        for row, begin in enumerate(first):
            q, k, v, out = (tensor[row, :, begin:] for tensor in (query, key, value, output))
            for start in range(0, length - begin, BLOCK):
                stop = min(start + BLOCK, length - begin)
                scores = torch.bmm(q[:, start:stop], k[:, :stop].transpose(1, 2)).mul_(scaling)
                scores[:, :, start:].masked_fill_(above[: stop - start, : stop - start], -torch.inf)
                weights = torch.softmax(scores, -1)
                out[:, start:stop] = torch.bmm(weights, v[:, :stop])
                kept.append(weights)
        any_ctx = cast(Any, ctx)
        any_ctx.save_for_backward(query, key, value, output, *kept)
        any_ctx.first, any_ctx.scaling = first, scaling
        return output

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = gradients
        query, key, value, output, *kept = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        through = (grad * output).sum(-1, keepdim=True)
        length, parts = query.shape[2], iter(kept)
        for row, begin in enumerate(ctx.first):
            q, k, v, g, dot = (tensor[row, :, begin:] for tensor in (query, key, value, grad, through))
            grad_q, grad_k, grad_v = (tensor[row, :, begin:] for tensor in (grad_query, grad_key, grad_value))
            for start in range(0, length - begin, BLOCK):
                stop = min(start + BLOCK, length - begin)
                weights, here = next(parts), g[:, start:stop]
                grad_v[:, :stop].baddbmm_(weights.transpose(1, 2), here)
                scores = torch.bmm(here, v[:, :stop].transpose(1, 2)).sub_(dot[:, start:stop]).mul_(weights).mul_(ctx.scaling)
                torch.bmm(scores, k[:, :stop], out=grad_q[:, start:stop])
                grad_k[:, :stop].baddbmm_(scores.transpose(1, 2), q[:, start:stop])
        return grad_query, grad_key, grad_value, None, None


def padded(decoder: Any, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a decoder makes of embeddings [b, T, hidden], whose padding on the left is hidden by the mask int64 [b, T]."""
    hidden: torch.Tensor = decoder(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


def without_padding(decoder: Any, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same without a mask, so that a GPU's fastest attention serves: rows begin with what is real and end with padding,
    which nothing real sees, and are moved back. Rotary embeddings know distances only. At the padding it means nothing.

    Worked example: mask 0 0 1 1 1, tokens p p a b c: moved by 2 to a b c p p, and back.
    """
    padding = (mask == 0).sum(1, keepdim=True)
    places = torch.arange(inputs.shape[1], device=inputs.device)
    moved = inputs.gather(1, ((places + padding) % inputs.shape[1])[..., None].expand_as(inputs))
    hidden: torch.Tensor = decoder(inputs_embeds=moved, attention_mask=None, use_cache=False).last_hidden_state
    return hidden.gather(1, ((places - padding) % inputs.shape[1])[..., None].expand_as(hidden))


def use(decoder: Any) -> None:
    """Make the layers of a Llama decoder without grouped heads attend this way; its batches are padded on the left only."""
    AttentionInterface.register(_NAME, _forward)
    AttentionMaskInterface.register(_NAME, flash_attention_mask)  # hands on the mask [b, T] of what is real
    decoder.config._attn_implementation = _NAME


def _forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    first = [0] * len(query) if mask is None else mask.int().argmax(-1).tolist()
    return CausalBlocks.apply(query, key, value, first, scaling).transpose(1, 2), None
