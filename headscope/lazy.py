"""Faces of rooms whose names are loaded when they are first used, so that importing the room is quick."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def loaded(room: str, homes: Mapping[str, str], name: str) -> Any:
    """What `name` stands for in a room's face.

    Args:
        room: the package.
        homes: module inside the room, by public name.
        name: that is asked for.

    Raises:
        AttributeError: the room has no such name.
    """
    if name not in homes:
        raise AttributeError(f"module '{room}' has no attribute '{name}'")
    return getattr(import_module(f"{room}.{homes[name]}"), name)
