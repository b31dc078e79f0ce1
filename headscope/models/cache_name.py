"""How a network names its cache argument: `cache` since transformers 5.24, which warns of `past_key_values`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from transformers import LlamaModel

NAMES = ("cache", "past_key_values")


def cache_name(forward: Callable[..., Any] = LlamaModel.forward) -> str:
    """The argument of `forward` that takes the cache.

    Args:
        forward: of a network, whose family may use either name; without one, this transformers' own.
    """
    parameters = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in parameters), NAMES[1] if forward is LlamaModel.forward else cache_name())
