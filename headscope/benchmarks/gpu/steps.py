"""The steps, in the order of their value, and how long each may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from headscope.errors import DataError

if TYPE_CHECKING:
    from headscope.benchmarks.gpu.context import Context


@dataclass(frozen=True)
class Step:
    """A part of the benchmark that runs in a process of its own.

    Attributes:
        name: by which it is asked for; also its module here, whose `run` it is.
        seconds: that it may take, the start of its process included.
        tells: what it measures.
    """

    name: str
    seconds: float
    tells: str

    @property
    def run(self) -> Callable[[Context], None]:
        """What it does."""
        return import_module(f"headscope.benchmarks.gpu.{self.name}").run


STEPS = {
    step.name: step
    for step in (
        Step("card", 40, "the card, its bandwidth, and the matrix products of a step"),
        Step("kernels", 60, "every kernel against float64 at the real shape"),
        Step("tokens", 60, "whether a captured graph gives the CPU's tokens"),
        Step("tune", 75, "attention by block, warps and stages"),
        Step("events", 45, "a step at several tokens, construct, prefill, capture, and a profile"),
        Step("images", 120, "whole images: a fifth of the cache, all of it, and transformers' generate"),
        Step("more", 260, "other batches, Janus-Pro-7B, and the largest batches for 24 and 80 GB"),
    )
}


def steps_of(names: str | None) -> list[Step]:
    """The steps of a list with commas, in the order of STEPS; all without one.

    Raises:
        DataError: an unknown name.
    """
    asked = list(STEPS) if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in asked if name not in STEPS]:
        raise DataError(f"`steps` {unknown[0]}: no such step; use {', '.join(STEPS)}, several with commas.")
    return [step for name, step in STEPS.items() if name in asked]
