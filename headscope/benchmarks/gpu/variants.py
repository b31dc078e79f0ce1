"""What is compared: a fifth of the cache, all of it, fewer bits of the fifth, and transformers' own caches."""

from __future__ import annotations

import torch

from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.shapes import SIZES
from headscope.errors import ModelError
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, Limit, Policy, make_preset, project
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder

SHARE, DRY_SHARE = 0.2, 0.85  # an image of four tokens has no fifth
BITS = {"20_at_8": 8, "20_at_4": 4}
GENERATE = ("generate_static", "generate_dynamic")


def policies(model: JanusModel) -> dict[str, Policy]:
    """`20`: in every layer half of the heads with a window, half with heavy tokens chosen at row ends. `full`: everything.
    `20_at_8` and `20_at_4`: the tokens of `20` in fewer bits."""
    prefix = SIZES[model.name].prefix
    fifth = shared(model, prefix, DRY_SHARE if model.name == "dry" else SHARE)
    fewer = {name: fifth.replace(bits=torch.full_like(fifth.bits, bits)) for name, bits in BITS.items()}
    full = make_preset("full", Limit.of_share(1.0, CacheSpec(model.shape, prefix, dtype=str(model.dtype))))
    return {"20": fifth, "full": full, **fewer}


def shared(model: JanusModel, prefix: int, share: float) -> Policy:
    """A share of all bytes, by windows in every second head and heavy tokens in the others.

    Args:
        model: whose heads.
        prefix: tokens of the prompts.
        share: of the plain cache's bytes.
    """
    shape = model.shape
    semantic = torch.zeros(shape.layers, shape.kv_heads)
    semantic[:, ::2] = 1
    row = shape.geometry.row_length
    limit = Limit.of_share(share, CacheSpec(shape, prefix, dtype=str(model.dtype)))
    window, heavy = project(1 - semantic, semantic, limit, stride=row)
    return Policy.uniform(shape, window=window, heavy=heavy, stride=row, prefix=prefix)


def decoder_of(context: Context, model: JanusModel, policy: Policy) -> LlamaCudaDecoder:
    """The GPU's decoder, or a refusal: no other one ever runs in its place.

    Args:
        context: says whether there is a GPU; a dry run takes the same decoder on the CPU.
        model: on the device.
        policy: what is kept.

    Raises:
        ModelError: the decoder lacks something for this model and policy.
    """
    lacking = LlamaCudaDecoder.lacking(model, policy)
    if lacking is not None and context.cuda:
        raise ModelError(f"decoder {LlamaCudaDecoder.name}: {lacking}; nothing else is measured in its place.")
    return LlamaCudaDecoder(model, policy)
