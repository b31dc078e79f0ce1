"""`headscope models`: what can be named."""

from __future__ import annotations

from headscope.cli.console import say


def models() -> None:
    """List the models that can be named. Example: headscope models"""
    from headscope.models import known_models

    for name, description in known_models():
        say(f"{name:34} {description}")
