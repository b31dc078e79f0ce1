"""Measurements: losses, bytes, milliseconds. What a decoding step costs needs only what runs a policy."""

# ruff: noqa: F401 - what checkers see of the names below
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.lazy import loaded

if TYPE_CHECKING:
    from headscope.benchmarks.shapes import SIZES, random_janus

_HOMES = {"SIZES": "shapes", "random_janus": "shapes"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    return loaded(__name__, _HOMES, name)
