"""What may be wrong with a Janus in transformers' format and with a network of one's own: a sentence, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headscope.errors import ModelError
from headscope.models import load_model
from headscope.models.janus import JanusModel
from tests.cli.command import headscope
from tests.models.test_raster import CARD, gpt2

INDEX, TOML, CONFIG = "model.safetensors.index.json", "headscope.toml", "config.json"


@pytest.fixture(scope="module")
def whole(tiny: JanusModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each, its weights in parts."""
    root = tmp_path_factory.mktemp("whole")
    tiny.network.save_pretrained(root / "janus", max_shard_size="200KB")
    tiny.tokenizer.save_pretrained(root / "janus")
    gpt2().save_pretrained(root / "raster", max_shard_size="60KB")
    (root / "raster" / TOML).write_text(CARD)
    return {path.name: path for path in root.iterdir()}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*-of-*.safetensors"))


def rewrite(file: Path, **changes: Any) -> None:
    """Other fields in a JSON object; those of an object in it are changed one by one."""
    found = json.loads(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(found.get(name), dict) else value
    file.write_text(json.dumps(found))


def add_strange(folder: Path) -> None:
    """Four tensors more than the network has."""
    first, strange = shards(folder)[0], {f"other.{letter}": torch.zeros(2) for letter in "BADC"}
    save_file({**load_file(first), **strange}, first, {"format": "pt"})
    rewrite(folder / INDEX, weight_map=dict.fromkeys(strange, first.name))


STRANGE = r"has other\.A, other\.B, other\.C \(4 tensors in all\), for which the model has no place"
LOST = r"lacks model-00002-of-0000\d\.safetensors, which model\.safetensors\.index\.json names: copy the whole checkpoint"
LLAMAGEN = "or checkpoints of LlamaGen's, and .*, which is another family's: give each model a folder"
SIZE = "asks for 8 x 8 tokens, but the model was trained on images of 4 x 4, and other sizes come out as noise"
LARGE = {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 20}
DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("janus", lambda f: shards(f)[1].unlink(), LOST),
    ("janus", lambda f: [path.unlink() for path in f.glob("model*")], r"has no weights \(looked for model\.safetensors and"),
    ("janus", add_strange, STRANGE),
    ("janus", lambda f: (f / TOML).write_text(CARD), "marks of a network of one's own and of Janus in transformers' format"),
    ("janus", lambda f: (f / "c2i_B_256.pt").touch(), LLAMAGEN),
    ("janus", lambda f: rewrite(f / CONFIG, vision_config={"image_size": 32, "num_image_tokens": 64}), SIZE),
    ("janus", lambda f: rewrite(f / CONFIG, text_config={"intermediate_size": 40}), "has the shape .*, by the configuration"),
    ("janus", lambda f: rewrite(f / CONFIG, text_config=LARGE), r"is of a network of 4,\d\d\d,.* numbers, and the files"),
    ("janus", lambda f: rewrite(f / "generation_config.json", guidance_scale=-3), "guidance is -3.0, expected a scale from 0"),
    ("raster", lambda f: rewrite(f / CONFIG, n_embd=8192, n_layer=5), r"network of 4,.* weights hold \d+ KiB: copy both"),
    ("raster", lambda f: shards(f)[1].unlink(), LOST),
    ("raster", add_strange, STRANGE),
    ("raster", lambda f: (f / "llamagen.json").write_text("{}"), LLAMAGEN),
    ("raster", lambda f: rewrite(f / CONFIG, gen_vision_config={}), "marks of a network of one's own and of Janus in DeepSeek"),
    ("raster", lambda f: rewrite(f / CONFIG, n_positions=28), r"wpe\.weight has the shape \[24, 32\], by the config"),
    ("raster", lambda f: (f / CONFIG).unlink(), "cannot be loaded as a decoder-only network"),
    ("raster", lambda f: (f / TOML).write_text(CARD.replace("[16]", "16")), 'prompt "cat" is 16, expected a list of tokens'),
    ("raster", lambda f: (f / TOML).write_text(CARD.replace("[16]", "[20]")), r"cat \[20\]: expected .* from 0 to 19"),
    ("raster", lambda f: (f / TOML).write_text(CARD.replace("rows = 4", "rows = 7")), "28 image tokens are more than its 24"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "damage", "says"), DAMAGE, ids=[str(number) for number in range(len(DAMAGE))])
def test_a_damaged_folder_is_one_sentence(
    whole: dict[str, Path], tmp_path: Path, kind: str, damage: Callable[[Path], object], says: str
) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / kind)
    damage(folder)
    with pytest.raises(ModelError, match=says) as told:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["janus", "raster"])
def test_the_command_says_it_and_writes_nothing(whole: dict[str, Path], tmp_path: Path, capsys, monkeypatch, kind: str) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / kind)
    shards(folder)[1].unlink()
    for verb in (["run", folder], ["generate", folder, "cat"], ["trace", folder]):
        ended = headscope(capsys, monkeypatch, *verb, "--out", tmp_path / "out")
        assert (ended.status, ended.err.count("error: ")) == (2, 1)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["janus", "raster"])
def test_torchs_old_format_is_read_where_transformers_reads(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(whole[kind], tmp_path / kind)
    tensors = {name: tensor for path in shards(folder) for name, tensor in load_file(path).items()}
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert load_model(str(folder), "cpu").shape.weights == load_model(str(whole[kind]), "cpu").shape.weights
