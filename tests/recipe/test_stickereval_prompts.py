"""How StickerEval's prompts and real images of them are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from headscope.recipe import stickereval_prompts
from headscope.recipe.image_model import load_image_model
from headscope.recipe.scenes import CLASSES
from headscope.recipe.stickereval_prompts import SEEN, ceiling, grading_prompts, write_real
from headscope.stickereval.grader import StickerEval
from headscope.stickereval.prompts import TAGS, read_grading_prompts
from tests.recipe.drawings import squares


def test_real_images_are_one_a_grading_prompt_and_the_same_every_time(tmp_path: Path) -> None:
    book = squares()
    first, again = (write_real(book, tmp_path / name) for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == [f"{number:04d}.png" for number in range(len(read_grading_prompts()))]
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    with Image.open(first / "0000.png") as image:
        assert (image.size, image.mode) == ((96, 96), "RGB")


def test_styles_are_asked_for_of_drawings_that_the_detector_learned_only() -> None:
    book = squares()
    book.unseen = [(name, "flat") for name in CLASSES]
    asked = [line["include"][0] for line, _ in grading_prompts(book) if line["tag"] == "style"]
    assert {one["style"] for one in asked} == {"noto"}


def test_the_prompts_have_the_wording_of_their_first_day() -> None:
    """Whatever training's prompts say since: class, count, background and wording follow from the seed alone."""
    shipped = [prompt.prompt for prompt in read_grading_prompts() if prompt.tag != "style"]
    assert [line["prompt"] for line, _ in grading_prompts(squares()) if line["tag"] != "style"] == shipped


def test_what_real_images_are_given_is_told_by_category(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawings are plain squares here, in which the detector finds nothing it could grade as right."""
    monkeypatch.setattr(stickereval_prompts, "grading_prompts", lambda book: grading_prompts(book)[::5])
    table = ceiling(squares(), load_image_model("stickers-scenes"), StickerEval(), read_grading_prompts()[::5], views=1)
    assert table["seen"].value_counts().to_dict() == dict.fromkeys(SEEN, len(TAGS) + 1)
    assert (table["images"] == [*[8] * len(TAGS), 40] * 2).all()
    assert (table["score"] <= 0.1).all()
