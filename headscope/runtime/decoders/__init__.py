"""Decoders: ways to take one token through a model."""
