"""Words that a model does not know are named, once, and only those."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from headscope.errors import UnknownWords
from headscope.models.janus import JanusModel
from headscope.models.tokens import unknown_sentence, unknown_words
from headscope.pipeline.prompts import default_prompts
from headscope.runtime import generate


def test_unknown_words_are_those_that_the_tokenizer_does_not_have(tiny: JanusModel) -> None:
    prompts = ["red robot Apple", "red🦊apple dino", "dino"]
    assert unknown_words(tiny, prompts) == ["robot", "🦊", "dino"]


def test_what_the_bundled_models_are_asked_by_default_is_known(stickers: JanusModel) -> None:
    assert unknown_words(stickers, default_prompts("stickers")) == []
    assert unknown_sentence(stickers, ["red apple"]) is None
    assert unknown_words(stickers, ["a purple dinosaur on the moon", "a Dinosaur"]) == ["dinosaur", "Dinosaur"]


def test_a_tokenizer_that_spells_knows_every_word() -> None:
    spells = SimpleNamespace(tokenizer=SimpleNamespace(unk_token_id=None), name="m")
    assert unknown_words(spells, ["anything 🦊"]) == []  # type: ignore[arg-type]
    assert unknown_words(SimpleNamespace(name="m"), ["anything"]) == []  # type: ignore[arg-type]


def test_drawing_in_python_warns_before_it_draws(tiny: JanusModel) -> None:
    with pytest.warns(UnknownWords, match="dinosaur"):
        generate(tiny, ["red dinosaur"], 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(tiny, ["red apple"], 0)


def test_many_words_make_one_short_sentence(tiny: JanusModel) -> None:
    sentence = unknown_sentence(tiny, [" ".join(f"word{number}" for number in range(40))])
    assert sentence is not None
    assert "word0" in sentence
    assert "word39" not in sentence
    assert "28 more" in sentence
