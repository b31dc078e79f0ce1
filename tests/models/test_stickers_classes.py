"""The bundled `stickers-classes` is a LlamaGen that was trained: by its files, its `.pt` wrappings, and a search on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import JanusVQVAE

import headscope
from headscope.errors import DataError
from headscope.models import ImageModel, Samples, bundled_folder, known_models, load_model
from headscope.pipeline import default_prompts
from headscope.recipe.configuration import vq_configuration
from headscope.recipe.presets import PRESETS
from headscope.recipe.scenes import CLASSES
from headscope.stickereval.detector import StickerDetector
from tests.llamagen import Tiny, transformer, vq_tensors

NAME = "stickers-classes"
PROMPTS = ["lemon", "red heart", "star", "tulip"]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = bundled_folder(NAME)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def model() -> ImageModel:
    return load_model(NAME, "cpu")


@pytest.fixture(scope="module")
def samples(model: ImageModel) -> Samples:
    return headscope.generate(model, PROMPTS, 0)


def test_it_is_known_by_its_name_and_its_classes(model: ImageModel) -> None:
    assert NAME in dict(known_models())
    assert (model.shape.name, model.shape.layers, model.shape.kv_heads, model.shape.geometry.tokens) == (NAME, 7, 8, 256)
    prompts = default_prompts(NAME)
    assert len(set(prompts)) == 32
    assert set(prompts) <= set(CLASSES)
    assert model.tokenize(["red apple", "ghost", "47"]).ids.flatten().tolist() == [0, 47, 47]
    with pytest.raises(DataError, match='prompt "dog face": no class of stickers-classes'):
        model.tokenize(["dog face"])


def test_its_files_are_small_and_have_the_published_names(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8e6
    classes = (folder / "classes.txt").read_text().splitlines()
    assert classes == list(CLASSES)
    stored, published = load_file(folder / "model.safetensors"), transformer(Tiny(layers=7))
    assert stored.keys() == published.keys()
    assert stored["cls_embedding.embedding_table.weight"].shape == (len(classes) + 1, 192)
    pixels = load_file(folder / "vq.safetensors")
    assert pixels.keys() < vq_tensors(JanusVQVAE(vq_configuration(PRESETS["quick"]))).keys()
    assert {name.split(".")[0] for name in pixels} == {"decoder", "post_quant_conv", "quantize"}


def test_a_seed_gives_the_same_image_alone_and_among_others(model: ImageModel, samples: Samples) -> None:
    again = headscope.generate(model, PROMPTS[1:2], 1)
    assert torch.equal(again.tokens, samples.tokens[1:2])
    assert not torch.equal(headscope.generate(model, PROMPTS[1:2], 2).tokens, again.tokens)


def test_images_show_their_classes(model: ImageModel, samples: Samples) -> None:
    images = torch.from_numpy(np.repeat(np.repeat(model.to_images(samples.tokens).numpy(), 3, 1), 3, 2))[:, ::2, ::2]
    found = StickerDetector.load().detect(images)
    shown = [prompt in {one.name for one in boxes} for prompt, boxes in zip(PROMPTS, found, strict=True)]
    assert sum(shown) >= 3


def test_its_checkpoints_are_the_same_model(model: ImageModel, samples: Samples, folder: Path, tmp_path: Path) -> None:
    for name in ("llamagen.json", "classes.txt"):
        shutil.copy(folder / name, tmp_path)
    tensors, pixels = (load_file(folder / name) for name in ("model.safetensors", "vq.safetensors"))
    torch.save({"model": pixels}, tmp_path / "vq_ds16_c2i.pt")
    for wrapping in ("module", "state_dict", None, "model"):
        torch.save({wrapping: tensors, "steps": 7} if wrapping else tensors, tmp_path / "c2i.pt")
        other = load_model(tmp_path, "cpu")
        assert (other.shape.weights, other.shape.architecture) == (model.shape.weights, model.shape.architecture)
    tokens = headscope.generate(other, PROMPTS[:1], 0).tokens
    assert torch.equal(tokens, samples.tokens[:1])
    assert torch.equal(other.to_images(tokens), model.to_images(tokens))


def test_its_heads_differ_and_a_search_keeps_its_limit(model: ImageModel, samples: Samples, tmp_path: Path) -> None:
    heads = headscope.classify(headscope.trace(model, samples, tmp_path / "trace"), model.shape, resamples=2)
    scores = heads.scores()
    assert scores.shape == (7, 8)
    assert scores.min() < 0.2
    assert scores.max() > 0.8
    limit = headscope.Limit.parse("20%", headscope.CacheSpec.of(model, prefix=1))
    config = {"trials": 1, "quick": True, "bits": "16"}
    found = headscope.search(model, samples.select([0]), scores, limit, tmp_path / "search", config)
    assert limit.spec.bytes_of(found.policy) <= limit.bytes <= 0.2 * limit.spec.full_bytes
    small = headscope.generate(model, PROMPTS[:1], 0, policy=found.policy)
    assert (small.tokens == samples.tokens[:1]).float().mean() > 0.2
