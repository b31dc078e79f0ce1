"""Images that the model generated, as training images: which are taken, and as what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headscope.models.janus import JanusModel
from headscope.recipe.detector_data import kept_tokens
from headscope.recipe.image_model import load_image_model
from headscope.recipe.pseudo_labels import OTHER, generated_pool, labelled
from headscope.recipe.scenes import Item, Scene, held_out_count, pair_held_out
from headscope.stickereval.detector import StickerDetector, Thing
from tests.recipe.drawings import squares


class Told(StickerDetector):
    """Says of each image what it was told, in place of looking."""

    def __init__(self, things: list[list[Thing]]) -> None:
        self.classes, self.told = ["lemon", "dog", "key"], things

    def things(self, images: object, least: float, batch_size: int = 64) -> list[list[Thing]]:
        return self.told


def thing(shares: list[float], x: float = 0.5) -> Thing:
    return Thing(0.9, np.array(shares, dtype=np.float32), 1 - sum(shares), 0, x, 0.5, 0.4)


CLEAR, FAINT, ELSE, UNSURE, STRANGE = (
    thing([0.9, 0.05, 0.0]),  # a lemon
    thing([0.02, 0.05, 0.0], 0.7),  # a lemon only beside a lemon: .29 of the classes
    thing([0.05, 0.6, 0.0]),  # a dog, and `other` does not say so
    thing([0.02, 0.05, 0.0]),
    thing([0.001, 0.05, 0.0]),  # like nothing, least of all like a lemon
)


@pytest.mark.parametrize(
    ("things", "names"),
    [
        ([CLEAR], ["lemon"]),
        ([CLEAR, FAINT], ["lemon", "lemon"]),
        ([STRANGE], [OTHER]),
        ([CLEAR, STRANGE], ["lemon", OTHER]),
        ([UNSURE], None),
        ([ELSE], None),
        ([CLEAR, ELSE], None),
        ([], None),
    ],
)
def test_what_a_generated_image_is_labelled_as(things: list[Thing], names: list[str] | None) -> None:
    asked = Scene("counting", (Item("lemon", "flat", 0.3, 0.3, 0.4),) * 2, "blue")
    rows, scenes = labelled(Told([things]), torch.zeros(1, 3, 96, 96, dtype=torch.uint8), [asked])
    if names is None:
        assert (rows, scenes) == ([], [])
        return
    assert rows == [0]
    assert [item.name for item in scenes[0].items] == names
    assert [item.x for item in scenes[0].items] == [one.x for one in things]
    assert {item.style for item in scenes[0].items} == {""}


@pytest.fixture(scope="module")
def model() -> JanusModel:
    return load_image_model("stickers-scenes")


def test_images_are_generated_once_from_prompts_of_training(
    model: JanusModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.recipe.pseudo_labels.CHUNK", 2)
    book, detector = squares(), StickerDetector.load()
    pool = generated_pool(book, model, detector, tmp_path, 2)
    (path,) = tmp_path.iterdir()
    tokens, asked = kept_tokens(path)
    assert tokens.shape == (2, 576)
    for scene in asked:
        names = [item.name for item in scene.items]
        assert not (scene.kind == "counting" and len(names) == held_out_count(names[0]))
        assert not (scene.kind in ("two", "position") and pair_held_out(names[0], names[1]))
    assert len(pool.images) == len(pool.scenes) <= 2
    monkeypatch.setattr("headscope.recipe.pseudo_labels.generate_images", None)  # nothing is generated a second time
    assert generated_pool(book, model, detector, tmp_path, 2).scenes == pool.scenes
