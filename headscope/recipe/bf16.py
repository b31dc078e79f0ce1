"""Multiplying in bfloat16 where the machine has units for it: a step of training costs 0.6 of what it does in float32."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdpa_float32"


def has_units(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32: on a GPU, and on CPUs with AMX tiles."""
    return device.startswith("cuda") or torch.cpu._is_amx_tile_supported()


def products() -> AbstractContextManager[Any]:
    """Inside it a CPU with AVX-512's bfloat16 multiplies in it, and learns from what it multiplied; others stay in float32.

    Measured on one core of an EPYC: a step of `stickers-classes` takes half of the time. Casts are not cached, for the weights
    that were cast change with every step.
    """
    fast = torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=fast, cache_enabled=False)


def fuse(decoder: Any, device: str) -> None:
    """Make the layers of a Llama decoder ready for autocast on a CPU: attention stays in float32, the rest is compiled.

    PyTorch's backward of CPU attention takes twice as long in bfloat16, and its casts and norms, one by one, cost more than
    the faster products bring; compiled they cost 0.7 of it. A GPU needs neither.
    """
    if device != "cpu":
        return
    AttentionInterface.register(_NAME, _in_float32)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    decoder.config._attn_implementation = _NAME
    for layer in decoder.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


class Compiled:
    """Layers of a Llama decoder, compiled for a GPU and back; nothing depends on whether that works.

    Attributes:
        seconds: that compiling took.
        fault: why it did not work, if it did not.
        on: whether it is compiled now.
    """

    def __init__(self, decoder: Any, attempt: Callable[[], None]) -> None:
        """Prepare.

        Args:
            decoder: its layers are compiled.
            attempt: goes through them, forwards and backwards.
        """
        self._layers, self._attempt = decoder.layers, attempt
        self.seconds, self.fault, self.on = 0.0, "", False

    def begin(self) -> bool:
        """Compile; whether that worked."""
        began, self.on = time.monotonic(), True
        for layer in self._layers:
            layer.forward = torch.compile(layer.forward)
        try:
            self._attempt()
        except Exception as error:  # whatever a compiler may lack
            self.fault = f"{type(error).__name__}: {error}".splitlines()[0]
            self.end()
        self.seconds = time.monotonic() - began
        return self.on

    def end(self) -> None:
        """Back to the layers' own code."""
        self.on = False
        for layer in self._layers:
            del layer.forward


def plain() -> AbstractContextManager[Any]:
    """Inside it, what is compiled runs as it was written: for shapes that are not worth compiling."""
    return torch.compiler.set_stance("force_eager")


def _in_float32(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
