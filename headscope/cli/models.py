"""`headscope models`: what can be named."""

from __future__ import annotations

from headscope.cli.console import say
from headscope.models import known_models


def models() -> None:
    """List the models that can be named. Example: headscope models"""
    for name, description in known_models():
        say(f"{name:34} {description}")
