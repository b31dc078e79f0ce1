"""What other packages add: entry points of the groups `headscope.models`, `headscope.presets` and `headscope.statistics`."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points
from typing import Any

_loaded: dict[str, dict[str, Any]] = {}


def plugged(group: str) -> dict[str, Any]:
    """What installed packages offer in a group, by name; looked up once a process.

    One that can't be imported is told in a warning and left out: another package's fault stops nobody's work.

    Args:
        group: models, presets or statistics.
    """
    if group not in _loaded:
        found = _loaded[group] = {}
        for point in entry_points(group=f"headscope.{group}"):
            try:
                found[point.name] = point.load()
            except Exception as error:
                warnings.warn(f"{point.value}: not loaded as one of headscope's {group} ({error!r}).", stacklevel=2)
    return _loaded[group]
