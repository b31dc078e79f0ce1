"""Heads: which are spatial and which are semantic."""

from headscope.heads.classifier import HeadClassifier, classify
from headscope.heads.features import FEATURES, features as head_features
from headscope.heads.files import SEMANTIC, SPATIAL, Heads
from headscope.heads.published import read_scores
from headscope.heads.stability import enough, measure_stability

__all__ = [
    "FEATURES",
    "SEMANTIC",
    "SPATIAL",
    "HeadClassifier",
    "Heads",
    "classify",
    "enough",
    "head_features",
    "measure_stability",
    "read_scores",
]
