"""The compressed-cache runtime: a cache as small as its policy says, decoders that use it, and a sampler."""

from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.generate import generate
from headscope.runtime.sampling import Sampling, guide, sample

__all__ = ["CompressedCache", "Sampling", "compressed", "generate", "guide", "sample"]
