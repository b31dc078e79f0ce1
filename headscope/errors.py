"""Errors that a user reads: one sentence saying where, what was found, what was expected, what to do."""

from __future__ import annotations


class HeadscopeError(Exception):
    """Base of every error headscope raises on purpose; the command line prints it and exits with status 2."""


class PolicyMismatch(HeadscopeError):
    """A policy does not fit: wrong model, damaged tensor, impossible value."""


class BudgetError(HeadscopeError):
    """A byte limit that no policy can meet, or one that is above the full cache."""


class ModelError(HeadscopeError):
    """A model that is unknown, missing, or of a family headscope cannot drive."""


class DataError(HeadscopeError):
    """A file or folder that is missing, damaged, or belongs to another run."""


class CacheError(HeadscopeError):
    """The compressed cache was asked for something that it cannot do right."""


class NumberError(HeadscopeError):
    """The model gives numbers that are none: NaN or infinite logits, keys or losses."""


class UnknownWords(UserWarning):
    """Words of a prompt that the model's tokenizer does not know; told before anything is generated."""
