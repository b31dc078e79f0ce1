"""What goes wrong while measuring, as one sentence."""

from __future__ import annotations

import gc

import torch

from headscope.errors import HeadscopeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory was too small; inside a capture that surfaces as a plain RuntimeError."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


def sentence(error: BaseException, where: str) -> str:
    """What went wrong, for the results.

    Args:
        error: that was raised.
        where: the step, or a variant in it.
    """
    if isinstance(error, HeadscopeError):
        return f"{where}: {error}"
    if is_out_of_memory(error):
        return f"{where}: out of memory; use a smaller batch or shape, or a card with more memory."
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message").rstrip(".")
    return f"{where}: {type(error).__name__}: {first}."


def forget() -> None:
    """Give the memory of what was dropped back to the card, and count its peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
