"""The recipe of `stickers-classes`, on a model of a few thousand weights: its folder, and what a stop and a seed mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import JanusVQVAE

from headscope.errors import DataError
from headscope.models import load_model
from headscope.recipe import checkpoint
from headscope.recipe.class_export import export_classes
from headscope.recipe.class_transformer import NAMES, Classed, class_losses, fresh_network, sizes_of, train_classes
from headscope.recipe.configuration import vq_configuration
from headscope.recipe.images import Stickers
from headscope.recipe.muon import MuonAdam
from headscope.recipe.plan import Plan
from headscope.recipe.scenes import CLASSES
from headscope.recipe.vq import load_vq
from tests.llamagen import Slow, Tiny
from tests.recipe.drawings import TINY, tiny_stickers

SIZE = replace(TINY, rate=0.03)
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def stickers() -> Stickers:
    return tiny_stickers()


@pytest.fixture
def train(stickers: Stickers, tmp_path: Path) -> Train:
    """Train in a folder of `tmp_path`, which is handed back."""

    def run(name: str, images: int, seed: int = 0) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(7)
            vq = JanusVQVAE(vq_configuration(SIZE)).state_dict()
            save_file({key: value.contiguous() for key, value in vq.items()}, folder / "vq.safetensors")
        train_classes(SIZE, stickers, Plan(folder, seed, images=images, minutes_between_checkpoints=0))
        return folder

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer.safetensors")


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_seed_gives_its_weights_and_a_stop_changes_nothing(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole", 20)
    assert same(train("again", 20), whole)
    assert not same(train("other", 20, seed=1), whole)
    save = checkpoint.save

    def stop(parts: torch.nn.Module, optimiser: MuonAdam, path: Path, facts: dict[str, str]) -> None:
        save(parts, optimiser, path, facts)
        if facts["step"] == "2":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train("stopped", 20)
    assert same(train("stopped", 20), whole)


def test_the_folder_holds_the_published_network_of_what_was_trained(train: Train, stickers: Stickers, tmp_path: Path) -> None:
    """Against LlamaGen the slow way, on the tensors as they were written."""
    training = train("run", 40)
    folder = export_classes(SIZE, stickers, training, tmp_path / "toy-classes", 1.5, "a test")
    size = Tiny(SIZE.layers, SIZE.heads, SIZE.hidden // SIZE.heads, SIZE.grid, len(NAMES))
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    slow = Slow({name: tensor.float() for name, tensor in stored.items()}, size)
    network = fresh_network(sizes_of(SIZE, len(NAMES)), load_vq(SIZE, training), 0)
    network.load_state_dict({name: network_value(training, name) for name in network.state_dict()})
    tokens = torch.randint(SIZE.codes, (1, SIZE.grid**2), generator=torch.Generator().manual_seed(1))
    codes = tokens[0].tolist()
    for number in (0, 5, len(NAMES)):  # the last is no class
        expected = slow.logits(number, codes[:-1]).log_softmax(-1)[torch.arange(len(codes)), codes]
        assert torch.allclose(-class_losses(network, torch.tensor([number]), tokens)[0], expected, atol=1e-4)
    model = load_model(folder, "cpu")
    prefix = model.tokenize(["rose", "5"])
    assert prefix.ids.tolist() == [[NAMES.index("rose")], [5]]
    assert model.to_images(tokens).shape == (1, 16, 16, 3)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "40 images, 4 a step" in card
    assert "--minutes 1.5" in card


def network_value(training: Path, name: str) -> torch.Tensor:
    """What was trained, rounded as it is stored."""
    return weights(training)[name].bfloat16().float()


def test_nothing_trained_is_one_sentence(stickers: Stickers, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such checkpoint; run `python -m headscope\.recipe classes` first"):
        export_classes(SIZE, stickers, tmp_path, tmp_path / "out", 1.0, "a test")
    assert not (tmp_path / "out").exists()


def test_images_come_with_their_class_but_for_one_in_ten() -> None:
    """Here each drawing is an opaque square, as red as the number of its class."""
    concepts = [*CLASSES.values()][::-1] * 2
    reds = [NAMES.index(name) / 100 for concept in concepts for name in CLASSES if CLASSES[name] == concept]
    rgba = torch.ones(len(concepts), 4, 16, 16)
    rgba[:, 0] = torch.tensor(reds)[:, None, None]
    kept = np.arange(len(concepts)) < len(CLASSES)
    size, stickers = replace(SIZE, batch=400), Stickers(rgba, concepts, ["noto"] * len(concepts), kept)
    batch = Classed(size, stickers, 0)(3, None)
    shown = ((batch["pixels"][:, 0, 8, 8] + 1) * 50).round().long()
    said = batch["classes"] != len(NAMES)
    assert torch.equal(batch["classes"][said], shown[said])
    assert 0.06 < 1 - said.float().mean() < 0.14
    assert len(shown.unique()) == len(NAMES)
    assert not torch.equal(Classed(size, stickers, 1)(3, None)["classes"], batch["classes"])
    assert not torch.equal(Classed(size, stickers, 0)(4, None)["classes"], batch["classes"])
