"""headscope: learn what the attention heads of an image-generating transformer need to remember, and keep only that."""

from headscope.heads import classify
from headscope.models import load_model
from headscope.policy import Policy, load_policy, save_policy
from headscope.run import run
from headscope.runtime import CompressedCache, compressed, generate
from headscope.tracing import trace
from headscope.tuning import tune as search

__all__ = [
    "CompressedCache",
    "Policy",
    "classify",
    "compressed",
    "generate",
    "load_model",
    "load_policy",
    "run",
    "save_policy",
    "search",
    "trace",
]
