"""Weights that can't fit are refused before they are loaded: a system would end the process half way."""

from __future__ import annotations

from headscope.errors import BudgetError
from headscope.models import resolve_device, resolve_dtype, stored_numbers
from headscope.pipeline.budgets import free_memory
from headscope.pipeline.memory import free_bytes
from headscope.words import size

SHORT = 2  # bytes of a number in 16 bits


def check_weights(name: str, device: str = "auto", dtype: str | None = None) -> None:
    """Refuse a model whose weights alone are more than what is free.

    Args:
        name: as `load_model` takes it.
        device: for the weights.
        dtype: of the weights.

    Raises:
        BudgetError: says whether two bytes a number would fit.
    """
    numbers, device = stored_numbers(name), resolve_device(device)
    if numbers is None:
        return
    kind = resolve_dtype(dtype, device)
    free = free_bytes() if device == "cpu" else free_memory(device)
    if numbers * kind.itemsize <= free:
        return
    shorter = kind.itemsize > SHORT and numbers * SHORT <= free
    advice = f"set `dtype` to bfloat16 ({size(numbers * SHORT)})" if shorter else "use a device with more"
    raise BudgetError(
        f"{name}: its weights take {size(numbers * kind.itemsize)} in {str(kind).removeprefix('torch.')}, {size(free)} are "
        f"free: {advice}."
    )
