"""Heads: which are spatial and which are semantic."""

from headscope.heads.classifier import SEMANTIC, SPATIAL, HeadClassifier, Heads, classify
from headscope.heads.features import FEATURES

__all__ = ["FEATURES", "SEMANTIC", "SPATIAL", "HeadClassifier", "Heads", "classify"]
