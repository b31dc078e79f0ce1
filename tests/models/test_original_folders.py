"""What may be wrong with a folder in DeepSeek's format: one sentence, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast

from headscope.errors import ModelError
from headscope.models import load_model, writes_text
from headscope.models.checkpoint import weight_files
from headscope.models.janus_tokenizer import load_tokenizer
from headscope.models.tokens import check_spaces
from tests.cli.command import headscope
from tests.janus_original import BOS, original_tensors, true_network, write_byte_tokenizer, write_original, write_weights


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return original_tensors(true_network())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("whole") / "Janus-Toy", true_network(), parts=3)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "Janus-Toy")


def rewrite(file: Path, **changes: Any) -> None:
    """Other fields in a JSON object; None takes one away."""
    found = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def lose_spaces(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    split: Any = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.save(str(folder / "tokenizer.json"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def make_old(folder: Path) -> None:
    """One part as torch wrote it before 1.6."""
    state = torch.load(folder / PART, weights_only=True)
    torch.save(state, folder / PART, _use_new_zipfile_serialization=False)


def size(side: int) -> dict[str, Any]:
    return {"params": {"image_size": side}}


CONFIG, INDEX = "config.json", "pytorch_model.bin.index.json"
PART = "pytorch_model-00002-of-00003.bin"
DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / PART).unlink(), rf"lacks {PART}, which pytorch_model\.bin\.index\.json names: copy the whole"),
    (lambda f: [p.unlink() for p in f.glob("*index*")] and (f / PART).unlink(), f"lacks {PART}, of which other parts"),
    (lambda f: [p.unlink() for p in f.glob("pytorch_model*")], r"no weights \(looked for model\.safetensors and pytorch_model"),
    (lambda f: cut(f / PART), f"{PART}: cannot be read"),
    (lambda f: (f / INDEX).write_text("{"), r"index\.json: cannot be read as JSON"),
    (lambda f: rewrite(f / INDEX, weight_map={"a": "../b.bin"}), r"\.\./b\.bin.*expected one beside it"),
    (lambda f: rewrite(f / INDEX, weight_map={"a": ["b"]}), "expected one beside it"),
    (lambda f: rewrite(f / CONFIG, model_type="janus"), "marks of Janus in transformers' format and of Janus in"),
    (lambda f: rewrite(f / CONFIG, model_type="siglip", gen_vision_config=None), "of type 'siglip'; headscope drives janus"),
    (lambda f: rewrite(f / CONFIG, gen_vision_config=None), "looks at images and generates none"),
    (lambda f: rewrite(f / CONFIG, vision_gen_dec_config={}), "is JanusFlow, which makes all of an image at once"),
    (lambda f: rewrite(f / CONFIG, gen_head_config={"params": {}}), "lacks gen_head_config.params.image_token_embed"),
    (lambda f: rewrite(f / CONFIG, vision_config={"params": {"image_size": "big"}}), "image_size is .*expected a whole"),
    (lambda f: rewrite(f / CONFIG, language_config={"model_type": "gemma"}), "model_type is 'gemma', expected 'llama'"),
    (lambda f: rewrite(f / CONFIG, language_config={"hidden_size": "x"}), r"config\.json: describes no Janus"),
    (lambda f: rewrite(f / CONFIG, language_config={"num_hidden_layers": 2}), "has the shape .* by the configuration"),
    (make_old, rf"{PART}: is in the format of torch before 1\.6, .* write it anew in its folder with python -c \"import"),
    (lambda f: rewrite(f / CONFIG, vision_config=size(128)), "asks for 8 x 8 tokens, but .* trained on images of 4 x 4"),
    (lambda f: (f / "headscope.toml").write_text(""), "marks of a network of one's own and of Janus in DeepSeek's format"),
    (lose_spaces, 'tokenizer gives "aredapple" back for "a red apple"'),
    (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: cannot be read"),
    (lambda f: rewrite(f / "processor_config.json", sft_format="llava"), 'sft_format is "llava", expected deepseek or plain'),
    (lambda f: rewrite(f / "processor_config.json", pad_tag="<none>"), 'no token "<none>", the pad_tag here'),
    (lambda f: (f / "tokenizer_config.json").write_text("[1]"), r"tokenizer_config\.json: holds \[1\], expected an object"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=[str(number) for number in range(len(DAMAGE))])
def test_a_damaged_folder_is_one_sentence(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=says) as told:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(told.value)


def test_the_command_says_it_and_writes_nothing(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (folder / PART).unlink()
    ended = headscope(capsys, monkeypatch, "run", folder, "--out", tmp_path / "run")
    assert ended.status == 2
    assert sum(line.startswith("error: ") and PART in line for line in ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_tensors_that_fit_nothing_are_named(folder: Path, tensors: dict[str, torch.Tensor], kind: str, tmp_path: Path) -> None:
    strange = {f"language_model.model.layers.0.lora_{letter}.weight": torch.zeros(2) for letter in "BADC"}
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    write_weights(folder, {**tensors, **strange}, kind)
    with pytest.raises(
        ModelError, match=r"has \S*lora_A\S*, \S*lora_B\S*, \S*lora_C\S* \(4 tensors in all\), for which the model"
    ):
        load_model(str(folder), device="cpu")
    lost = ["gen_head.vision_head.weight", "gen_vision_model.decoder.mid.1.q.weight"]
    write_weights(folder, {name: tensor for name, tensor in tensors.items() if name not in lost}, kind)
    with pytest.raises(ModelError, match=rf"lacks {', '.join(lost)}: copy the whole checkpoint\."):
        load_model(str(folder), device="cpu")


class Harmful:
    """Pickled, it makes a folder when it is opened without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("old", [False, True], ids=["torch", "pickle"])
def test_a_file_that_runs_code_is_refused(folder: Path, tmp_path: Path, old: bool) -> None:
    file, trap = folder / PART, Harmful(tmp_path / "done")
    file.write_bytes(pickle.dumps(trap)) if old else torch.save({"a": trap}, file)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(folder), device="cpu")
    assert not trap.place.exists()


def test_a_file_of_something_else_is_refused(folder: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}}, folder / PART)
    with pytest.raises(ModelError, match="holds other things than named tensors"):
        load_model(str(folder), device="cpu")


def test_weights_are_found_in_their_order(tmp_path: Path) -> None:
    one = {"a": torch.zeros(2), "b": torch.ones(1)}
    write_weights(tmp_path, one, "bin", 2)
    assert [path.name for path in weight_files(tmp_path)] == [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    write_weights(tmp_path, one, "safetensors")
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1-of-1.safetensors")
    assert [path.name for path in weight_files(tmp_path)] == ["model-1-of-1.safetensors"]


def test_the_way_of_loading_that_their_settings_name_loses_spaces(tmp_path: Path) -> None:
    """The guard knows it; read as it stands, the same file is right, and begins as the settings say."""
    write_byte_tokenizer(tmp_path)
    named = LlamaTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    with pytest.raises(ModelError, match='gives "aredapple" back for "a red apple"'):
        check_spaces(named, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer("a red apple")["input_ids"]) == f"{BOS}a red apple"
    rewrite(tmp_path / "tokenizer_config.json", add_bos_token=False)
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path)("dog")["input_ids"]) == "dog"


def test_words_that_a_tokenizer_does_not_know_are_not_lost_spaces(stickers: Any) -> None:
    check_spaces(stickers.tokenizer, "stickers")
    unknown: PreTrainedTokenizerFast = stickers.tokenizer
    assert unknown.unk_token_id in unknown("qwertz")["input_ids"]


@pytest.fixture
def cached(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder as a hub's client keeps what it fetched."""
    name, commit = "deepseek-ai/Janus-Pro-1B", "0" * 40
    place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(whole, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return name


def test_a_hub_id_reaches_the_same_loader(whole: Path, cached: str) -> None:
    model = load_model(cached, device="cpu")
    assert model.name == cached
    assert model.shape.weights == load_model(str(whole), device="cpu").shape.weights
    assert not writes_text(cached)


def test_a_hub_id_of_something_else_is_refused(cached: str, tmp_path: Path) -> None:
    (config,) = tmp_path.rglob("config.json")
    rewrite(config, model_type="siglip", gen_vision_config=None)
    with pytest.raises(ModelError, match=f"{cached}: holds a model of type 'siglip'"):
        load_model(cached, device="cpu")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("deepseek-ai/Janus-Pro-1B", "not to be had from a hub"),
        ("deepseek-ai/JanusFlow-1.3B", "is JanusFlow, which makes all of an image at once"),
    ],
)
def test_without_a_network_a_hub_id_is_one_sentence(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as told:
        load_model(name)
    assert "\n" not in str(told.value)
