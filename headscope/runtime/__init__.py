"""The compressed-cache runtime: a cache as small as its policy says, decoders that use it, and a sampler."""

from headscope.runtime.batches import FULL, OTHER, OTHER_SEED, ImageBatches, Variant, batch_for, batches_to_generate, seconds_of
from headscope.runtime.cache import CompressedCache, compressed
from headscope.runtime.cache_layer import check_prefix
from headscope.runtime.decoders import AUTO, Decoder, choose, decoder_name, passed_over
from headscope.runtime.finite import no_numbers
from headscope.runtime.generate import generate, sample_rows
from headscope.runtime.plain import PlainCache
from headscope.runtime.quantized import read_back
from headscope.runtime.row_cache import cache_for
from headscope.runtime.rows_at_once import replayed_rows
from headscope.runtime.sampling import Sampler, Sampling, guide, sample, scales

__all__ = [
    "AUTO",
    "FULL",
    "OTHER",
    "OTHER_SEED",
    "CompressedCache",
    "Decoder",
    "ImageBatches",
    "PlainCache",
    "Sampler",
    "Sampling",
    "Variant",
    "batch_for",
    "batches_to_generate",
    "cache_for",
    "check_prefix",
    "choose",
    "compressed",
    "decoder_name",
    "generate",
    "guide",
    "no_numbers",
    "passed_over",
    "read_back",
    "replayed_rows",
    "sample",
    "sample_rows",
    "scales",
    "seconds_of",
]
