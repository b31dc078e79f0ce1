"""What the detector learns from: nothing that is kept for its test, and images that the model has resampled."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open

from headscope.models.janus import JanusModel
from headscope.recipe.detector_data import (
    BATCH,
    KINDS,
    DetectorScenes,
    Pool,
    decoded,
    keep_tokens,
    kept_tokens,
    resample,
    resampled,
    training_scenes,
)
from headscope.recipe.image_model import load_image_model
from headscope.recipe.scenes import CLASSES, Item, Scene, held_out_count, pair_held_out
from headscope.runtime import Sampling, generate
from headscope.stickereval.detector import StickerDetector
from tests.recipe.drawings import squares
from tests.tiny import tiny_model

SAMPLE = Path(__file__).parents[1] / "stickereval" / "held_out.safetensors"
LEMON = Scene("single", (Item("lemon", "noto", 0.3, 0.4, 0.5),), "blue")


@pytest.fixture(scope="module")
def book() -> DetectorScenes:
    return squares()


@pytest.fixture(scope="module")
def scenes_model() -> JanusModel:
    return load_image_model("stickers-scenes")


def test_concepts_that_look_like_a_class_are_left_out(book: DetectorScenes) -> None:
    assert book.others == [("robot", "noto")]  # a heart suit looks like a red heart
    assert book.unseen == [("red apple", "flat")]


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
@settings(max_examples=40)
def test_no_training_scene_shows_what_is_kept_for_the_test(book: DetectorScenes, seed: int, kind: str) -> None:
    items = book.training_scene(kind, np.random.default_rng(seed)).items
    assert not {(item.name, item.style) for item in items} & set(book.unseen)
    names = [item.name for item in items if item.name in CLASSES]
    for first, second in combinations(names, 2):
        assert first == second or not pair_held_out(first, second)
    if kind == "counting":
        assert len(names) != held_out_count(names[0])


def test_resampling_an_image_without_chance_gives_the_image_generated_without_chance() -> None:
    """Each token of an image of most likely codes is the most likely one after those before it."""
    model = tiny_model()
    prompts = ["red apple", "dog face, noto style, blue background"]
    likeliest = generate(model, prompts, 0, sampling=Sampling(temperature=0.0)).tokens.long()
    untold = generate(model, ["sticker"], 0, sampling=Sampling(guidance=0.0, temperature=0.0)).tokens.long()
    model.temperature = 1e-6
    rng = np.random.default_rng(0)
    torch.testing.assert_close(resample(model, likeliest, prompts, rng), likeliest)
    torch.testing.assert_close(resample(model, untold, [""], rng), untold)  # without a caption


def test_resampled_images_show_the_same_things(scenes_model: JanusModel) -> None:
    with safe_open(str(SAMPLE), "pt") as file:
        tokens = file.get_tensor("tokens")[[0, 1, 2, 16]].long()
    detector = StickerDetector.load()
    before = detector.detect(scenes_model.to_images(tokens))
    captions = [" and ".join(f"a {one.name}" for one in found) for found in before]
    pixels = decoded(scenes_model, tokens).float() / 127.5 - 1
    once, twice = resampled(scenes_model, pixels, captions, 2, np.random.default_rng(0), batch=3)
    assert 0.1 < (once != tokens).float().mean() < (twice != tokens).float().mean() < 0.9
    after = detector.detect(decoded(scenes_model, once).permute(0, 2, 3, 1))
    same = [Counter(one.name for one in a) == Counter(one.name for one in b) for a, b in zip(before, after, strict=True)]
    assert sum(same) >= 3


def test_a_pool_is_filled_once_and_shows_scenes(book: DetectorScenes, scenes_model: JanusModel, tmp_path: Path) -> None:
    pool = Pool.fill(book, scenes_model, tmp_path, 2)
    (path,) = tmp_path.iterdir()
    made = path.stat().st_mtime_ns
    again = Pool.fill(book, scenes_model, tmp_path, 2)
    assert path.stat().st_mtime_ns == made
    assert again.scenes == pool.scenes
    torch.testing.assert_close(again.images, pool.images)
    # One scene at each depth, and each time is kept: 1 + 2 + 3 images.
    assert pool.images.shape == (6, 3, 96, 96)
    assert pool.scenes[1] == pool.scenes[2]
    assert pool.scenes[3] == pool.scenes[4] == pool.scenes[5]


def test_kept_tokens_come_back_with_what_they_show(tmp_path: Path) -> None:
    tokens = torch.arange(576)[None]
    back, scenes = kept_tokens(keep_tokens(tmp_path / "t.safetensors", tokens, [LEMON]))
    assert scenes == [LEMON]
    assert back.tolist() == tokens.tolist()


def test_a_pool_mirrors_images_and_places_alike() -> None:
    image = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    image[..., :48] = 255  # the left half is white, where the lemon is
    pixels, scenes = Pool(image, [LEMON]).sample(16, np.random.default_rng(0))
    places = [scene.items[0].x for scene in scenes]
    assert set(places) == {0.3, 0.7}
    assert [float(each[0, 0, 0]) for each in pixels] == [1.0 if x == 0.3 else -1.0 for x in places]


def test_a_third_of_a_batch_is_of_the_pools(book: DetectorScenes, scenes_model: JanusModel) -> None:
    pool = Pool(torch.zeros(1, 3, 96, 96, dtype=torch.uint8), [Scene("resampled", (), "blue")])
    vq = scenes_model.network.model.vqmodel
    for known, share in (([pool], BATCH // 3), ([pool, pool], BATCH // 6 * 2), ([], 0)):
        pixels, scenes = training_scenes(book, vq, known, np.random.default_rng(0), fast=False)
        assert pixels.shape == (BATCH, 3, 96, 96)
        assert len(scenes) == BATCH
        assert sum(scene.kind == "resampled" for scene in scenes) == share
