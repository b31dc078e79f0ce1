"""The compressed-cache runtime: a cache as small as its policy says, and a sampler that draws with it."""

from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.generate import generate

__all__ = ["CompressedCache", "compressed", "generate"]
