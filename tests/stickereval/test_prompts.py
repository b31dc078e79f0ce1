"""Grading prompts are read whole, or the line that is wrong is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from headscope.errors import DataError
from headscope.models import load_model
from headscope.recipe.presets import STYLES
from headscope.recipe.scenes import CLASSES, held_out_count, pair_held_out
from headscope.stickereval.detector import known_names
from headscope.stickereval.prompts import TAGS, Wanted, read_grading_prompts

LEMONS = '{"tag": "counting", "include": [{"class": "lemon", "count": 3}], "prompt": "three lemons"}'
BESIDE = (
    '{"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "owl", "count": 1, "position": ["above", 0]}], '
    '"prompt": "an owl above a dog"}'
)


def test_the_shipped_prompts_ask_for_what_training_never_shows() -> None:
    prompts = read_grading_prompts()
    assert Counter(prompt.tag for prompt in prompts) == dict.fromkeys(TAGS, 40)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        names = [wanted.name for wanted in prompt.include]
        assert set(names) <= set(CLASSES)
        if prompt.tag in ("two", "position"):
            assert pair_held_out(*names)
        if prompt.tag == "counting":
            assert prompt.include[0].count == held_out_count(names[0])
        assert (" style" in prompt.prompt) == (prompt.tag == "style")
        if prompt.tag == "position":
            other, first = prompt.include
            assert first.relation is not None
            assert f"{first.relation.removesuffix(' of')}" in prompt.prompt
            assert prompt.prompt.index(first.name) < prompt.prompt.index(other.name)


def test_the_model_knows_every_word_of_the_shipped_prompts() -> None:
    tokenizer = load_model("stickers-scenes").tokenizer  # type: ignore[attr-defined]
    texts = [prompt.prompt for prompt in read_grading_prompts()]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids, text


def test_the_detector_knows_the_classes_and_styles_of_the_scenes() -> None:
    assert known_names() == (list(CLASSES), list(STYLES))


def test_a_line_becomes_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(f"{LEMONS}\n\n{BESIDE}\n")
    lemons, beside = read_grading_prompts(tmp_path / "p.jsonl")
    assert lemons.include == (Wanted("lemon", 3),)
    assert beside.include == (Wanted("dog", 1), Wanted("owl", 1, None, "above", 0))
    assert beside.prompt == "an owl above a dog"


def changed(**values: object) -> str:
    return json.dumps(json.loads(LEMONS) | values)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"tag": "counting",', "line 2 is not JSON"),
        ("[1, 2]", 'line 2 is not a JSON object with a "prompt"'),
        (changed(include=[]), 'line 2 has no list "include"'),
        (changed(prompt=" "), 'line 2: the prompt " " is empty'),
        (changed(tag="count"), "line 2: unknown tag 'count'; nearest known: counting"),
        (changed(include=[{"class": "lemmon"}]), "line 2: unknown class 'lemmon'; nearest known: lemon"),
        (changed(include=[{"class": "qqqq"}]), "line 2: unknown class 'qqqq'; known: red apple, lemon"),
        (changed(include=["lemon"]), "line 2: entry 0 of \"include\" is 'lemon'"),
        (changed(include=[{"class": "lemon", "count": 0}]), "line 2: count 0 of lemon; expected a whole number from 1"),
        (changed(include=[{"class": "lemon", "style": "notto"}]), "line 2: unknown style 'notto'; nearest known: noto"),
        (changed(tag="style"), "line 2: tag style without a style"),
        (changed(tag="two"), "line 2: tag two with 1 entry"),
        (changed(tag="position"), "line 2: tag position without a position"),
        (BESIDE.replace("above", "over", 1), "line 2: unknown relation 'over'"),
        (BESIDE.replace('"above", 0', '"above", 1'), "points to entry 1; expected the number of another entry"),
        (BESIDE.replace('["above", 0]', '"above"'), "line 2: position 'above'; expected a pair"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "p.jsonl").write_text(f"{LEMONS}\n{line}\n")
    with pytest.raises(DataError) as error:
        read_grading_prompts(tmp_path / "p.jsonl")
    assert complaint in str(error.value)


def test_a_missing_and_an_empty_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such prompt file"):
        read_grading_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        read_grading_prompts(tmp_path / "empty.jsonl")
