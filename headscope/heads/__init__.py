"""Heads: which are spatial and which are semantic."""

from headscope.heads.classifier import HeadClassifier, classify
from headscope.heads.features import FEATURES
from headscope.heads.files import SEMANTIC, SPATIAL, Heads

__all__ = ["FEATURES", "SEMANTIC", "SPATIAL", "HeadClassifier", "Heads", "classify"]
