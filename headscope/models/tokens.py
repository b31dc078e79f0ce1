"""Prompts as a model's tokenizer takes them: which of their words it does not know."""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Sequence

from headscope.errors import UnknownWords
from headscope.models.protocol import ImageModel

# What a tokenizer of whole words tells apart: runs of letters and digits, and runs of other signs.
_WORD = re.compile(r"\w+|[^\w\s]+")
SHOWN = 12  # words in a sentence


def unknown_words(model: ImageModel, prompts: Sequence[str]) -> list[str]:
    """Words of `prompts`, each once and in their order, that the tokenizer turns into its token for the unknown.

    Empty for a tokenizer without such a token: it spells what it does not know.
    """
    tokenizer = getattr(model, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    words = list(dict.fromkeys(word for prompt in prompts for word in _WORD.findall(prompt)))
    if tokenizer is None or unknown is None or not words:
        return []
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    return [word for word, row in zip(words, ids, strict=True) if unknown in row]


def unknown_sentence(model: ImageModel, prompts: Sequence[str]) -> str | None:
    """What to tell a user before anything is generated; None where every word is known."""
    words = unknown_words(model, prompts)
    if not words:
        return None
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    named = ", ".join(words[:SHOWN]) + more
    unknown, it = ("this word", "it") if len(words) == 1 else ("these words", "them")
    return f"{model.name} does not know {unknown}, and can't draw {it}: {named}."


def warn_of_unknown_words(model: ImageModel, prompts: Sequence[str]) -> None:
    """Warn of words that the model does not know; in the process that was asked, not in each of its workers."""
    if multiprocessing.parent_process() is None and (sentence := unknown_sentence(model, prompts)):
        warnings.warn(sentence, UnknownWords, stacklevel=3)
