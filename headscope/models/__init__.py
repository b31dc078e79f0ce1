"""Model families, and the one place where attention is reached."""

from headscope.models.attention import observe
from headscope.models.protocol import ImageModel, Prefix
from headscope.models.registry import known_models, load_model, register_model
from headscope.samples import Samples

__all__ = ["ImageModel", "Prefix", "Samples", "known_models", "load_model", "observe", "register_model"]
