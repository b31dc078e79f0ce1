"""Prompts as a model's tokenizer takes them: left padded, and which of their words it does not know."""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from headscope.errors import DataError, ModelError, UnknownWords
from headscope.facts import shown
from headscope.models.protocol import ImageModel
from headscope.prompt_files import check_prompt

# What a tokenizer of whole words tells apart: runs of letters and digits, and runs of other signs.
_WORD = re.compile(r"\w+|[^\w\s]+")
SHOWN = 12  # words in a sentence
WORDS = "a red apple"  # what a tokenizer is tried on


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that no tokenizer takes.

    Raises:
        DataError: none, an empty one, or one that is no text.
    """
    if not prompts:
        raise DataError("No prompt was given: name at least one.")
    for number, prompt in enumerate(prompts, 1):
        check_prompt(prompt, f"Prompt {number} of {len(prompts)}")


def check_spaces(tokenizer: Any, source: str | Path) -> None:
    """Refuse a tokenizer that loses spaces: some loaders read a tokenizer.json of bytes as another kind, without an error.

    Args:
        tokenizer: as it will be used.
        source: where it came from, for the sentence.

    Raises:
        ModelError: words that were encoded come back as fewer.
    """
    back = str(tokenizer.decode(tokenizer(WORDS, add_special_tokens=False)["input_ids"]))
    if len(back.split()) < len(WORDS.split()):
        raise ModelError(
            f"{source}: its tokenizer gives {shown(back)} back for {shown(WORDS)}, so prompts would lose their spaces: put the "
            "tokenizer.json that the checkpoint was published with into the folder."
        )


def left_padded(
    tokenizer: Any, prompts: Sequence[str], texts: Sequence[str], model: ImageModel, length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of the texts, all of one length.

    Args:
        tokenizer: with a token for padding.
        prompts: as the user gave them, for messages.
        texts: what is tokenized, as many.
        model: whose `max_prefix` holds.
        length: at least so many tokens.

    Returns:
        ids and mask, int64 [prompts, P]; the mask is zero at the padding, on the left.

    Raises:
        DataError: a prompt longer than the model admits.
    """
    rows = tokenizer(list(texts))["input_ids"]
    # Padded apart: `tokenizer(..., padding=True)` sets its padding for all threads, and says that this way is slower.
    getattr(tokenizer, "deprecation_warnings", {})["Asking-to-pad-a-fast-tokenizer"] = True
    found = tokenizer.pad({"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt")
    ids, mask = found["input_ids"], found["attention_mask"]
    for prompt, count in zip(prompts, mask.sum(1).tolist(), strict=True):
        if count > model.max_prefix:
            shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
            raise DataError(f"The prompt '{shown}' is {count} tokens long, {model.name} admits {model.max_prefix}: shorten it.")
    more = max(0, (length or 0) - ids.shape[1])
    ids, mask = pad(ids, (more, 0), value=tokenizer.pad_token_id), pad(mask, (more, 0))
    return ids.to(model.device), mask.to(model.device)


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
