"""Scenes show what their captions say, and never what StickerEval keeps for itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from headscope.errors import DataError
from headscope.models.registry import bundled_folder
from headscope.recipe.images import Stickers
from headscope.recipe.presets import BACKGROUNDS, PRESETS
from headscope.recipe.scenes import (
    CLASSES,
    KINDS,
    RELATIONS,
    Item,
    Scene,
    SceneBook,
    compose,
    describe,
    held_out_count,
    pair_held_out,
    places,
)
from headscope.recipe.tokenizer import build_tokenizer
from headscope.recipe.warm_start import earlier_weights, take_over_vq


@pytest.fixture(scope="module")
def book() -> SceneBook:
    """Opaque squares, a colour each class, in two styles."""
    concepts = [concept for concept in CLASSES.values() for _ in range(2)]
    rgba = torch.rand(len(concepts), 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 32, 32).clone()
    rgba[:, 3] = 1.0
    return SceneBook(Stickers(rgba, concepts, ["flat", "noto"] * len(CLASSES), np.zeros(len(concepts), bool)))


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_training_never_shows_a_held_out_combination(book: SceneBook, seed: int, kind: str) -> None:
    scene = book.sample(kind, np.random.default_rng(seed))
    names = [item.name for item in scene.items]
    if kind == "counting":
        assert len(set(names)) == 1
        assert len(names) in (2, 3, 4)
        assert len(names) != held_out_count(names[0])
    elif kind != "single":
        assert names[0] != names[1]
        assert not pair_held_out(*names)
        assert not pair_held_out(*names[::-1])


@given(seed=st.integers(0, 2**32 - 1), relation=st.sampled_from(list(RELATIONS)))
def test_the_first_thing_stands_where_the_caption_says(book: SceneBook, seed: int, relation: str) -> None:
    first, second = places("position", 2, relation, np.random.default_rng(seed))
    gap = {
        "left": second[0] - first[0],
        "right": first[0] - second[0],
        "above": second[1] - first[1],
        "below": first[1] - second[1],
    }
    across = abs((first - second)[1 if relation in ("left", "right") else 0])
    assert gap[relation] > across  # the relation is the larger of the two differences


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_stickers_lie_in_the_image_and_hardly_touch(book: SceneBook, seed: int, kind: str) -> None:
    items = book.sample(kind, np.random.default_rng(seed)).items
    for number, item in enumerate(items):
        assert item.side / 2 - 0.06 <= item.x <= 1.06 - item.side / 2
        assert item.side / 2 - 0.06 <= item.y <= 1.06 - item.side / 2
        for other in items[:number]:
            assert max(abs(item.x - other.x), abs(item.y - other.y)) >= 0.8 * max(item.side, other.side)


def test_every_word_of_every_caption_is_in_the_tokenizer(book: SceneBook) -> None:
    tokenizer = build_tokenizer(sorted(CLASSES.values()), 64)
    rng = np.random.default_rng(1)
    captions = [describe(book.sample(kind, rng), rng) for _ in range(400) for kind in KINDS]
    for caption, ids in zip(captions, tokenizer(captions)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids, caption


def test_captions_say_the_number_the_relation_and_the_background() -> None:
    rng = np.random.default_rng(0)
    banana = Item("banana", "noto", 0.3, 0.3, 0.4)
    three = [describe(Scene("counting", (banana,) * 3, "blue"), rng) for _ in range(40)]
    assert all("three bananas" in text for text in three)
    assert any("blue background" in text for text in three)
    assert any("noto style" in text for text in three)
    owl = Item("owl", "flat", 0.7, 0.5, 0.4)
    beside = describe(Scene("position", (banana, owl), "grey", "left"), rng)
    assert "a banana to the left of an owl" in beside
    assert "flat style" not in beside  # the two styles differ


def test_the_same_seed_samples_the_same_scenes(book: SceneBook) -> None:
    one, other = (book.sample_batch(8, np.random.default_rng(5)) for _ in range(2))
    assert one.captions == other.captions
    assert torch.equal(one.pixels, other.pixels)
    assert one.pixels.shape == (8, 3, 32, 32)
    assert one.pixels.abs().max() <= 1


def test_a_sticker_is_painted_at_its_place_on_its_background(book: SceneBook) -> None:
    scene = compose("two", ["banana", "owl"], ["flat", "flat"], "left", np.random.default_rng(3))
    image = (book.render([scene], np.random.default_rng(4), tilt=0)[0] + 1) / 2
    for item in scene.items:
        expected = book.pyramid[0][book.index[item.name, item.style], :3, 16, 16]
        torch.testing.assert_close(image[:, int(item.y * 32), int(item.x * 32)], expected, atol=2e-2, rtol=0)
    corner = torch.tensor(BACKGROUNDS[scene.background]) / 255
    torch.testing.assert_close(image[:, 0, 0], corner, atol=1e-5, rtol=0)


def test_images_without_a_class_are_refused() -> None:
    lemon = Stickers(torch.zeros(1, 4, 8, 8), ["lemon"], ["noto"], np.zeros(1, bool))
    with pytest.raises(DataError, match=r"hold no red apple, banana.*all 48 classes"):
        SceneBook(lemon)


def test_a_run_goes_on_from_the_shipped_weights(tmp_path: Path) -> None:
    shipped = bundled_folder("stickers")
    assert shipped is not None
    parts, vq = earlier_weights(shipped)
    assert parts["language_model.embed_tokens.weight"].shape[1] == PRESETS["scenes"].hidden
    assert len(vq["quantize.embedding.weight"]) == PRESETS["scenes"].codes
    take_over_vq(shipped, tmp_path)
    assert (tmp_path / "vq.safetensors").is_file()
    with pytest.raises(DataError, match="holds no weights to go on from"):
        earlier_weights(tmp_path)
