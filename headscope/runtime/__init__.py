"""The compressed-cache runtime: a cache as small as its policy says, decoders that use it, and a sampler."""

from headscope.runtime.batches import FULL, OTHER, OTHER_SEED, ImageBatches, Variant, batch_for, batches_to_generate, seconds_of
from headscope.runtime.cache import CompressedCache, check_prefix, compressed
from headscope.runtime.decoders import AUTO, decoder_name, passed_over
from headscope.runtime.finite import no_numbers
from headscope.runtime.generate import generate
from headscope.runtime.plain import PlainCache
from headscope.runtime.sampling import Sampling, guide, sample

__all__ = [
    "AUTO",
    "FULL",
    "OTHER",
    "OTHER_SEED",
    "CompressedCache",
    "ImageBatches",
    "PlainCache",
    "Sampling",
    "Variant",
    "batch_for",
    "batches_to_generate",
    "check_prefix",
    "compressed",
    "decoder_name",
    "generate",
    "guide",
    "no_numbers",
    "passed_over",
    "sample",
    "seconds_of",
]
