"""The VQ model that Janus and LlamaGen share, by its authors' names of tensors: what turns codes into pixels, and no more."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from headscope.errors import ModelError
from headscope.models.checkpoint import Shapes

# Parts of names in transformers, and what stands in their place in the authors' files.
_INSIDE = {
    ".decoder.up.": ".decoder.conv_blocks.",
    ".block.": ".res.",
    ".mid.block_1.": ".mid.0.",
    ".mid.attn_1.": ".mid.1.",
    ".mid.block_2.": ".mid.2.",
}
UNUSED = ("encoder.", "quant_conv.", "quantize.codebook_used")  # beginnings of the authors' names
_DECODER_BLOCK = re.compile(r"decoder\.conv_blocks\.(\d{1,3})\.res\.(\d{1,3})\.conv1\.weight")


class Absent(nn.Module):
    """In the place of a part that does not generate images."""

    def __init__(self, part: str, config: Any) -> None:
        super().__init__()
        self.part, self.config = part, config

    def forward(self, *_: Any, **__: Any) -> Any:
        """Refuse."""
        raise ModelError(f"{self.part}: not loaded, for headscope takes of these files what generates images.")


def without_encoder(network: Any) -> None:
    """Take the part of a `JanusVQVAE` away that turns pixels into codes."""
    network.encoder = Absent("the VQ model's encoder", network.config)
    network.quant_conv = Absent("the VQ model's encoder", network.config)


def stored_name(name: str) -> str:
    """The authors' name of a parameter of transformers' `JanusVQVAE`."""
    name = f".{name}"
    for ours, theirs in _INSIDE.items():
        name = name.replace(ours, theirs)
    return name[1:]


def decoder_sizes(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the decoder, which settings at most call VQ-16, by the shapes of its tensors: fields of `JanusVQVAEConfig`.

    Args:
        shapes: by the authors' names.
    """
    widths = {(int(m[1]), int(m[2])): shapes[name][0] for name in shapes if (m := _DECODER_BLOCK.fullmatch(name))}
    levels = len({level for level, _ in widths})
    if not levels:  # it is missing, which is said when the network is filled
        return {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "latent_channels": 256, "num_res_blocks": 2}
    base = max(1, widths.get((levels - 1, 0), 1))
    return {
        "base_channels": base,
        "channel_multiplier": [widths.get((levels - 1 - level, 0), base) // base for level in range(levels)],
        "latent_channels": shapes.get("post_quant_conv.weight", (256,))[0],
        "num_res_blocks": max(block for _, block in widths),
    }


def as_pixels(values: torch.Tensor) -> torch.Tensor:
    """Numbers from -1 to 1 of any shape -> uint8 on the CPU, rounded."""
    return ((values.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
