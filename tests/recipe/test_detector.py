"""How the detector is trained: what a scene teaches, and a training that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headscope.errors import DataError
from headscope.recipe.detector import ship, targets, train_detector, trained
from headscope.recipe.detector_data import DetectorScenes, Pool
from headscope.recipe.detector_evaluation import wholly_right
from headscope.recipe.image_model import load_image_model
from headscope.recipe.scenes import Item, Scene
from headscope.stickereval.detector import (
    WEIGHTS,
    Detection,
    StickerDetector,
)
from tests.recipe.drawings import squares


@pytest.fixture(scope="module")
def detector() -> StickerDetector:
    return StickerDetector.load()


@pytest.fixture(scope="module")
def book() -> DetectorScenes:
    return squares()


def test_wholly_right_wants_classes_counts_styles_and_the_relation() -> None:
    lemon, dog = Item("lemon", "noto", 0.25, 0.5, 0.4), Item("dog", "noto", 0.75, 0.5, 0.4)
    found = [Detection(item.name, item.style, 0.9, item.x, item.y, item.side) for item in (lemon, dog)]
    left = Scene("position", (lemon, dog), "blue", "left")
    assert wholly_right(left, found) == {"classes": True, "right": True}
    assert not wholly_right(Scene("position", (lemon, dog), "blue", "right"), found)["right"]
    assert wholly_right(left, found[:1]) == {"classes": False, "right": False}
    flat = [Detection("lemon", "flat", 0.9, 0.25, 0.5, 0.4), found[1]]
    assert wholly_right(left, flat) == {"classes": True, "right": False}


def test_things_outside_the_classes_get_the_number_after_the_last() -> None:
    true = targets([Scene("mixed", (Item("lemon", "noto", 0.3, 0.3, 0.4), Item("robot", "flat", 0.7, 0.7, 0.4)), "blue")])
    assert true.names.tolist() == [[1, 48, -1, -1]]
    assert true.styles.tolist() == [[4, 2, -1, -1]]
    assert targets([Scene("generated", (Item("lemon", "", 0.3, 0.3, 0.4),), "blue")]).styles.tolist() == [[-1, -1, -1, -1]]


def test_a_stopped_training_goes_on_where_it_was(book: DetectorScenes, tmp_path: Path) -> None:
    model = load_image_model("stickers-scenes")
    train_detector(book, model, [], tmp_path, 64)
    checkpoint = train_detector(book, model, [], tmp_path, 128)
    assert (tmp_path / "detector.csv").read_text().splitlines()[-1].startswith("2,128,")
    shipped = StickerDetector.load(ship(trained(checkpoint, 0.3), tmp_path / "d.safetensors"))
    assert shipped.threshold == 0.3
    blank = torch.zeros(1, 3, 96, 96)
    torch.testing.assert_close(shipped.network(blank), trained(checkpoint).network(blank))


def test_a_warm_start_goes_on_from_a_detector_file(
    book: DetectorScenes, detector: StickerDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.recipe.detector.WARM_RATE", 0.0)  # no step changes a weight
    pool = Pool(torch.zeros(1, 3, 96, 96, dtype=torch.uint8), [Scene("empty", (), "blue")])
    model = load_image_model("stickers-scenes")
    checkpoint = train_detector(book, model, [pool], tmp_path, 64, warm_start=WEIGHTS)
    torch.testing.assert_close(trained(checkpoint).network.head.weight, detector.network.head.weight)


def test_a_model_that_generates_no_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.recipe.image_model.load_model", lambda name: object())
    with pytest.raises(DataError, match="prose: is no Janus; take `stickers-scenes`"):
        load_image_model("prose")
