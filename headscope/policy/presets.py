"""Presets by name: the known methods (methods.py), and those that a user or a package adds."""

from __future__ import annotations

import torch

from headscope.errors import HeadscopeError
from headscope.geometry import Geometry
from headscope.plugins import plugged
from headscope.policy.footprint import Limit
from headscope.policy.methods import (
    H2O,
    KIVI,
    SSD,
    TOVA,
    Full,
    LinearAR,
    Pyramid,
    Random,
    RandomHeads,
    Streaming,
    Swapped,
)
from headscope.policy.policy import Policy
from headscope.policy.preset import Preset

CONTROLS = ("random_heads", "swapped")  # they tell whether SSD's classes matter; no method that anyone proposes
_ALL: tuple[type[Preset], ...] = (Full, KIVI, Streaming, H2O, TOVA, LinearAR, Pyramid, SSD, RandomHeads, Swapped, Random)
PRESETS: dict[str, type[Preset]] = {preset.name: preset for preset in _ALL}


def register_preset(preset: type[Preset]) -> type[Preset]:
    """Add a method of one's own: `make_preset` knows it by its name, and searches may be compared with it.

    Args:
        preset: a class as `Preset` says, whose `sweep` has at least one setting.

    Returns:
        The class, so that this decorates it.

    Raises:
        HeadscopeError: the name is no identifier or is taken, or `build` or `sweep` is missing.
    """
    name = getattr(preset, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name in PRESETS:
        raise HeadscopeError(
            f"preset {name!r}: expected a name of its own, letters, digits and _; taken are {', '.join(PRESETS)}."
        )
    if missing := [method for method in ("build", "sweep") if not callable(getattr(preset, method, None))]:
        raise HeadscopeError(f"preset {name}: lacks the method {missing[0]}; see headscope.policy.Preset.")
    PRESETS[name] = preset
    return preset


def make_preset(name: str, limit: Limit, semantic_score: torch.Tensor | None = None) -> Policy:
    """The preset called `name` with its default numbers, at the largest size that fits.

    Args:
        name: one of PRESETS.
        limit: what has to hold it, and what that is counted for.
        semantic_score: float32 [layers, kv_heads] in [0, 1], for presets that tell classes of heads apart.

    Raises:
        HeadscopeError: unknown name.
        BudgetError: it does not fit.
    """
    for plug in plugged("presets").values() if name not in PRESETS else ():
        register_preset(plug)
    if name not in PRESETS:
        raise HeadscopeError(f"preset {name}: unknown; known presets are {', '.join(PRESETS)}.")
    return PRESETS[name]().build(limit, semantic_score)


def tighter(name: str, geometry: Geometry) -> list[Preset]:
    """Variants of a preset for limits that its own stride's buffer does not fit: none, for most presets."""
    shorter = getattr(PRESETS[name], "tighter", None)
    return [] if shorter is None else shorter(geometry)
