"""Decoders: ways to take tokens through a model and its cache."""

from headscope.runtime.decoders.protocol import Decoder
from headscope.runtime.decoders.registry import AUTO, DECODERS, choose, decoder_name, passed_over, usable_decoders

__all__ = ["AUTO", "DECODERS", "Decoder", "choose", "decoder_name", "passed_over", "usable_decoders"]
