"""The shipped detector: its own test's table, a sample of that test, and what it refuses."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.models import load_model
from headscope.recipe.detector_evaluation import wholly_right
from headscope.recipe.scenes import Item, Scene
from headscope.stickereval.detector import (
    LIKE,
    WEIGHTS,
    Detection,
    DetectorNetwork,
    StickerDetector,
    Thing,
    known_names,
    overlap,
)

SAMPLE = Path(__file__).parent / "held_out.safetensors"
TABLE = Path(__file__).parents[2] / "reports" / "stickers" / "detector.csv"


@pytest.fixture(scope="module")
def detector() -> StickerDetector:
    return StickerDetector.load()


def test_held_out_compositions_are_read_right(detector: StickerDetector) -> None:
    """A sample of `held_out_scenes`, kept as image tokens, so that they come as the VQ model shows them."""
    with safe_open(str(SAMPLE), "pt") as file:
        tokens, facts = file.get_tensor("tokens"), json.loads(file.metadata()["scenes"])
    scenes = [Scene(f["kind"], tuple(Item(*item) for item in f["items"]), "", f["relation"]) for f in facts]
    model = load_model("stickers-scenes")
    found = detector.detect(model.to_images(tokens))
    right = {"single": [], "scenes": []}  # type: dict[str, list[bool]]
    for scene, each in zip(scenes, found, strict=True):
        right["single" if scene.kind == "single" else "scenes"].append(wholly_right(scene, each)["right"])
    # The goals are .97 and .93 in the whole test; of these few, about two standard errors less.
    assert np.mean(right["single"]) >= 0.90
    assert np.mean(right["scenes"]) >= 0.85
    for scene, each in zip(scenes, found, strict=True):
        for one in each if len(scene.items) > 1 else []:  # where a relation is read off the centres
            assert min(max(abs(one.x - item.x), abs(one.y - item.y)) for item in scene.items) < 0.05


def test_the_table_of_its_whole_test_meets_the_goals() -> None:
    table = pd.read_csv(TABLE).set_index(["images_of", "seen"])
    for seen in ("composed", "after the VQ model"):
        assert table.loc[("single", seen), "right"] >= 0.97
        assert table.loc[("scenes", seen), "right"] >= 0.93
    assert (table["low"] <= table["right"]).all()
    assert (table["right"] <= table["high"]).all()


def test_a_blank_image_holds_nothing(detector: StickerDetector) -> None:
    blank = torch.full((2, 96, 96, 3), 230, dtype=torch.uint8)
    blank[1, :, :, 2] = 170
    assert detector.detect(blank) == [[], []]


def test_floats_and_bytes_are_the_same_image(detector: StickerDetector) -> None:
    with safe_open(str(SAMPLE), "pt") as file:
        images = load_model("stickers-scenes").to_images(file.get_tensor("tokens")[:3])
    as_bytes, as_floats = detector.detect(images), detector.detect(images.numpy() / 255.0, batch_size=2)
    assert [[one.name for one in each] for each in as_bytes] == [[one.name for one in each] for each in as_floats]
    for one, other in zip(chain(*as_bytes), chain(*as_floats), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_the_file_is_small_and_readable_by_all() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000
    assert WEIGHTS.stat().st_mode & 0o777 == 0o644
    classes, styles = known_names()
    assert (len(classes), len(styles)) == (48, 6)


def test_a_damaged_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable detector file"):
        StickerDetector.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a readable detector file"):
        StickerDetector.load(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(DataError, match="names no classes, styles and threshold"):
        known_names(tmp_path / "foreign.safetensors")
    about = {"classes": '["a"]', "styles": '["b"]', "threshold": "0.4"}
    save_file({"x": torch.zeros(1)}, tmp_path / "empty.safetensors", about)
    with pytest.raises(DataError, match="holds other tensors"):
        StickerDetector.load(tmp_path / "empty.safetensors")
    for name, text in (("classes", "5"), ("styles", "[null]"), ("threshold", '"much"'), ("threshold", "NaN"), ("classes", "{")):
        save_file({"x": torch.zeros(1)}, tmp_path / "wrong.safetensors", {**about, name: text})
        with pytest.raises(DataError, match=rf"wrong\.safetensors: {name}"):
            StickerDetector.load(tmp_path / "wrong.safetensors")


def maps_of(network: DetectorNetwork, peaks: list[tuple[int, int, int, int, float, float]]) -> torch.Tensor:
    """Maps [1, channels, 12, 12] with a peak at each (row, column, class, style, logit, side)."""
    maps = torch.zeros(1, 4 + network.classes + 1 + network.styles, 12, 12)
    maps[:, 0] = -9
    for i, j, name, style, logit, side in peaks:
        maps[0, 0, i, j] = logit
        maps[0, 3, i, j] = np.log(side)
        maps[0, 4 + name, i, j] = 20
        maps[0, 4 + network.classes + 1 + style, i, j] = 5
    return maps


def test_peaks_are_read_as_things_once_each_and_others_are_left_out() -> None:
    network = DetectorNetwork(2, 2)
    reader = StickerDetector(network, ["lemon", "dog"], ["flat", "noto"], 0.4)
    peaks = [
        (2, 3, 1, 0, 3.0, 0.4),
        (4, 3, 0, 0, 2.0, 0.4),  # two cells below: the same thing
        (8, 8, 0, 1, 2.0, 0.4),
        (8, 2, 2, 1, 5.0, 0.4),  # outside the classes
        (2, 10, 0, 0, -1.0, 0.4),  # too faint
    ]
    first, second = reader.named(reader._read_maps(maps_of(network, peaks), 0.4)[0])
    assert (first.name, first.style, second.name, second.style) == ("dog", "flat", "lemon", "noto")
    assert (first.x, first.y, first.side) == pytest.approx((3.5 / 12, 2.5 / 12, 0.4))
    assert first.score == pytest.approx(1 / (1 + np.exp(-3.0)))


def thing(objectness: float, shares: list[float], other: float) -> Thing:
    return Thing(objectness, np.array(shares, dtype=np.float32), other, 1, 0.5, 0.5, 0.4)


def test_a_half_drawn_thing_takes_the_class_recognised_beside_it() -> None:
    reader = StickerDetector(DetectorNetwork(3, 2), ["lemon", "dog", "key"], ["flat", "noto"], 0.4)
    lemon, blob = thing(0.9, [0.9, 0.05, 0.0], 0.05), thing(0.8, [0.1, 0.0, 0.2], 0.7)
    assert [(one.name, one.score) for one in reader.named([lemon, blob])] == [
        ("lemon", pytest.approx(0.81)),
        ("lemon", pytest.approx(0.4)),  # though a key is likelier, none is there
    ]
    assert reader.named([blob]) == []
    strange = thing(0.8, [LIKE / 2, 0.0, 0.0], 1 - LIKE / 2)
    assert [one.name for one in reader.named([lemon, strange])] == ["lemon"]
    dog = thing(0.7, [0.2, 0.8, 0.0], 0.0)
    assert [one.name for one in reader.named([lemon, dog, blob])] == ["lemon", "dog", "lemon"]


def test_a_mirror_image_is_seen_mirrored(detector: StickerDetector) -> None:
    with safe_open(str(SAMPLE), "pt") as file:
        images = load_model("stickers-scenes").to_images(file.get_tensor("tokens")[16:24])
    there, mirrored = detector.detect(images), detector.detect(images.flip(2))
    for one, other in zip(chain(*there), chain(*mirrored), strict=True):
        assert (one.name, one.style) == (other.name, other.style)
        assert (one.x, one.y, one.score) == pytest.approx((1 - other.x, other.y, other.score), abs=1e-3)


def test_overlap_is_intersection_over_union_of_squares() -> None:
    one, half = Detection("a", "b", 1.0, 0.4, 0.5, 0.4), Detection("a", "b", 1.0, 0.6, 0.5, 0.4)
    assert overlap(one, one) == pytest.approx(1.0)
    assert overlap(one, half) == pytest.approx(1 / 3)
    assert overlap(one, Detection("a", "b", 1.0, 0.9, 0.5, 0.4)) == 0.0
