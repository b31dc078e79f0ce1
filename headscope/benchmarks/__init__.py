"""Measurements of policies against each other: losses, bytes, milliseconds."""

from headscope.tuning.compare import MethodTable, compare_methods

__all__ = ["MethodTable", "compare_methods"]
