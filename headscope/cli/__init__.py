"""The command line."""

from headscope.cli.app import main

__all__ = ["main"]
