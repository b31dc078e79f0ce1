"""Heads: which are spatial and which are semantic."""

from headscope.heads.classifier import SEMANTIC, SPATIAL, HeadClassifier, Heads, classify

__all__ = ["SEMANTIC", "SPATIAL", "HeadClassifier", "Heads", "classify"]
