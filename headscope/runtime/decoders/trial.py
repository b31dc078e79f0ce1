"""Whether the GPU's kernels give what a model itself gives: tried once before they are relied on."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from headscope.errors import HeadscopeError
from headscope.facts import said
from headscope.models import ImageModel
from headscope.policy import Policy
from headscope.runtime.decoders.gpu_work import GpuWork, Prompts
from headscope.runtime.decoders.llama_cpu import TOLERANCE, parts_of

PREFIX, STEPS = 3, 2
_Seen = tuple[torch.dtype, torch.device, tuple[object, ...]]
_verdicts: weakref.WeakKeyDictionary[nn.Module, tuple[_Seen, str | None]] = weakref.WeakKeyDictionary()


def trial(model: ImageModel) -> str | None:
    """What stands against the kernels, as `Decoder.lacking` says it; None: nothing.

    A verdict holds for the modules that it was found on: where one was exchanged, it is found anew.

    Args:
        model: with a decoder that `plain_step` takes.
    """
    decoder: Any = model.decoder
    seen = (model.dtype, model.device, parts_of(decoder))
    if decoder not in _verdicts or _verdicts[decoder][0] != seen:
        _verdicts[decoder] = (seen, _tried(model))
    return _verdicts[decoder][1]


def _tried(model: ImageModel) -> str | None:
    try:
        off = difference(model)
    except torch.cuda.OutOfMemoryError:
        return "does not find the memory to try its kernels; another program uses the GPU"
    except HeadscopeError:
        raise
    except Exception as error:  # a compiler may fail in any way, in classes of several libraries
        return f"has kernels that Triton cannot run here ({said(error)})"
    if off > TOLERANCE[model.dtype]:
        return f"gives other numbers than the model here, by {off:.2g} of the largest"
    return None


@torch.inference_mode()
def difference(model: ImageModel) -> float:
    """Largest difference from the model's own forward over two tokens after prompts of which one is padded, relative to the
    largest number.

    Args:
        model: with a decoder that `plain_step` takes.
    """
    shape, device = model.shape, model.device
    policy = Policy.uniform(shape, window=shape.geometry.tokens - 1, stride=shape.geometry.row_length, prefix=PREFIX)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, model.vocabulary, (STEPS, 2), generator=generator).to(device)
    embedded = model.embed_tokens(codes)
    scale = float(embedded.float().std()) or 1.0
    embeds = (torch.randn(2, PREFIX, embedded.shape[-1], generator=generator) * scale).to(device, model.dtype)
    mask = torch.ones(2, PREFIX + STEPS, dtype=torch.int64, device=device)
    mask[0, 0] = 0
    work, cache = GpuWork(model, policy, 2, Prompts(PREFIX, 1, False), 1), DynamicCache()
    work.prefill(model, lambda part: part, embeds, mask[:, :PREFIX])
    model.forward(embeds, mask[:, :PREFIX], cache)
    worst = 0.0
    for t in range(STEPS):
        work.now.fill_(t)
        work.x.copy_(work.table.index_select(0, codes[t]))
        found = work.feed(False).float()
        expected = model.forward(embedded[t][:, None], mask[:, : PREFIX + t + 1], cache)[:, 0].float()
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst
