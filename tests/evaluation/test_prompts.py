"""Grading prompts are read whole, or the line that is wrong is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from headscope.errors import DataError
from headscope.models import load_model
from headscope.recipe.detector import drawing_model
from headscope.recipe.presets import STYLES
from headscope.recipe.scenes import CLASSES, held_out_count, pair_held_out
from headscope.recipe.stickereval_prompts import SEEN, ceiling, grading_prompts, write_real
from headscope.stickereval.detector import known_names
from headscope.stickereval.grader import StickerEval
from headscope.stickereval.prompts import TAGS, Wanted, read_grading_prompts
from tests.evaluation.drawings import squares

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


def test_real_pictures_are_one_a_grading_prompt_and_the_same_every_time(tmp_path: Path) -> None:
    book = squares()
    first, again = (write_real(book, tmp_path / name) for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == [f"{number:04d}.png" for number in range(len(read_grading_prompts()))]
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    with Image.open(first / "0000.png") as picture:
        assert (picture.size, picture.mode) == ((96, 96), "RGB")


def test_styles_are_asked_for_of_drawings_that_the_detector_learned_only() -> None:
    book = squares()
    book.unseen = [(name, "flat") for name in CLASSES]
    asked = [line["include"][0] for line, _ in grading_prompts(book) if line["tag"] == "style"]
    assert {one["style"] for one in asked} == {"noto"}


def test_the_prompts_have_the_wording_of_their_first_day() -> None:
    """Whatever training's prompts say since: class, count, background and wording follow from the seed alone."""
    shipped = [prompt.prompt for prompt in read_grading_prompts() if prompt.tag != "style"]
    assert [line["prompt"] for line, _ in grading_prompts(squares()) if line["tag"] != "style"] == shipped


def test_what_real_pictures_are_given_is_told_by_category() -> None:
    """The drawings are plain squares here, in which the detector finds nothing it could grade as right."""
    table = ceiling(squares(), drawing_model("stickers-scenes"), StickerEval(), read_grading_prompts(), views=1)
    assert table["seen"].value_counts().to_dict() == dict.fromkeys(SEEN, len(TAGS) + 1)
    assert (table["pictures"] == [*[40] * len(TAGS), 200] * 2).all()
    assert (table["score"] <= 0.1).all()
