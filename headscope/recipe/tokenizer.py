"""The prompt tokenizer: one token a word, learned from every caption the recipe can write."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pandas as pd
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.recipe.presets import BACKGROUNDS, EVERYDAY, STYLES

LONGEST_PROMPT = 64
SPECIAL = {
    "pad": "<pad>",
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "boi": "<begin_of_image>",
    "eoi": "<end_of_image>",
    "image": "<image_placeholder>",
}

# Words of the scenes that a later recipe composes, so that it can warm-start from these weights.
_LITTLE = ("a", "an", "the", "and", "of", "to", "on", "with", "in", "at", "next")
_PLACES = ("one", "two", "three", "four", "left", "right", "above", "below", "under", "over")
SCENE_WORDS = (*_LITTLE, *_PLACES, "style", "background", "photo", "picture", "sticker", "stickers", "plain")

# The prompt is typed as it is: this template only joins the text parts of the messages.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)


def words(text: str) -> list[str]:
    """Split as the tokenizer does: lower case, punctuation apart."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def build_tokenizer(concepts: Iterable[str], longest: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that left-pads and puts `<s>` first.

    Args:
        concepts: names of everything that can be generated.
        longest: most tokens a prompt may have, begin-of-image included.
    """
    vocabulary = set(SCENE_WORDS) | {","} | set(STYLES) | set(BACKGROUNDS)
    vocabulary |= {word + "s" for concept in EVERYDAY for word in words(concept)}
    for concept in concepts:
        vocabulary |= set(words(concept))
    ordered = [*SPECIAL.values(), *sorted(vocabulary)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(ordered)}, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL['bos']} $A", special_tokens=[(SPECIAL["bos"], ordered.index(SPECIAL["bos"]))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL["pad"],
        bos_token=SPECIAL["bos"],
        eos_token=SPECIAL["eos"],
        unk_token=SPECIAL["unk"],
        extra_special_tokens={
            "boi_token": SPECIAL["boi"],
            "eoi_token": SPECIAL["eoi"],
            "image_token": SPECIAL["image"],
        },
        padding_side="left",
        model_max_length=longest,
        chat_template=CHAT_TEMPLATE,
    )


def tokenizer_of(images: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of all concepts of an image file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        concepts = pd.read_parquet(images, columns=["concept"])["concept"]
    except Exception as error:
        raise DataError(f"{images}: not a readable image file ({error}).") from None
    return build_tokenizer(sorted(set(concepts)), LONGEST_PROMPT)


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of the special tokens by short name (`bos`, `boi`, `pad`, ...)."""
    return {name: int(cast(int, tokenizer.convert_tokens_to_ids(token))) for name, token in SPECIAL.items()}
