"""The list of statistics: what each is called, what it means, and how others add their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch

from headscope.errors import DataError
from headscope.plugins import plugged
from headscope.tracing.accumulated import Accumulated

Function = Callable[[Accumulated], torch.Tensor]

# Raised whenever a definition changes; written into every trace, and traces of two versions are never mixed.
DEFINITIONS = 2


@dataclass(frozen=True)
class Statistic:
    """One statistic of a head.

    Attributes:
        name: its column in the trace.
        function: of one layer's sums, to float32 [B, h] or [B, h, *shape].
        definition: what it is, with its source, in one paragraph.
        low: least value, in words where it depends on the image.
        high: largest value, likewise.
        unit: of its values.
        shape: "" for one number a head, else the dimensions of a curve in words.
        means: what a high value speaks for: "spatial", "semantic" or "neither".
        full: only in the full set, because it needs sorted attention.
    """

    name: str
    function: Function
    definition: str
    low: float | str
    high: float | str
    unit: str
    shape: str = ""
    means: str = "neither"
    full: bool = False

    def __call__(self, a: Accumulated) -> torch.Tensor:
        """float32 [B, h] or [B, h, *shape]."""
        return self.function(a)


STATISTICS: dict[str, Statistic] = {}
CURVES: dict[str, Statistic] = {}


def statistic(
    name: str,
    *,
    low: float | str = 0.0,
    high: float | str = 1.0,
    unit: str = "share",
    shape: str = "",
    means: str = "neither",
    full: bool = False,
) -> Callable[[Function], Function]:
    """Register a function under `name`; its docstring is the definition. A shape makes it a curve.

    Raises:
        DataError: the name is taken or is no identifier, or the function has no docstring.
    """

    def register(function: Function) -> Function:
        home = CURVES if shape else STATISTICS
        if name in STATISTICS or name in CURVES or not name.isidentifier():
            raise DataError(f"statistic {name}: the name is taken or no identifier; choose another one.")
        if not function.__doc__:
            raise DataError(f"statistic {name}: has no docstring; say what it is, with its source.")
        if means not in ("spatial", "semantic", "neither"):
            raise DataError(f"statistic {name}: means {means}; expected spatial, semantic or neither.")
        text = " ".join(inspect.cleandoc(function.__doc__).split())
        home[name] = Statistic(name, function, text, low, high, unit, shape, means, full)
        return function

    return register


def register_statistic(
    name: str,
    function: Function,
    *,
    low: float | str = 0.0,
    high: float | str = 1.0,
    unit: str = "share",
    means: str = "neither",
) -> None:
    """Add a statistic of one's own: from now on every trace has a column `name`, and the classifier may be given it.

    Args:
        name: an identifier that no other statistic has.
        function: of an `Accumulated` (one layer, B sequences, h query heads) to float32 [B, h]; its docstring says what it is.
        low: least value, in words where it depends on the image.
        high: largest value, likewise.
        unit: of its values.
        means: what a high value speaks for: "spatial", "semantic" or "neither".

    Raises:
        DataError: the name is taken or is no identifier, or the function has no docstring.

    Example:
        >>> def corner(a):
        ...     "Attention to the first cell of the image. Range 0 .. 1."
        ...     return a.columns[..., a.prefix] / a.count
        >>> register_statistic("corner", corner)  # doctest: +SKIP
    """
    statistic(name, low=low, high=high, unit=unit, means=means)(function)


def chosen_statistics(full: bool = False) -> dict[str, Statistic]:
    """The numbers of the default set, or of the full one; those that packages bring are in both."""
    for name, function in plugged("statistics").items():
        if name not in STATISTICS:
            register_statistic(name, function)
    return {name: one for name, one in STATISTICS.items() if full or not one.full}


def chosen_curves(full: bool = False) -> dict[str, Statistic]:
    """The curves of the default set, or of the full one."""
    return {name: one for name, one in CURVES.items() if full or not one.full}
