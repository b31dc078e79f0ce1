"""What a user types becomes a model, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headscope.errors import DataError, ModelError
from headscope.models import Samples, load_model
from headscope.models.janus import JanusModel


def test_a_folder_loads_and_keeps_its_fingerprints(tiny_folder: Path, tiny: JanusModel) -> None:
    loaded = load_model(str(tiny_folder))
    assert loaded.shape.weights == tiny.shape.weights
    assert loaded.shape.architecture == tiny.shape.architecture
    assert (loaded.shape.layers, loaded.shape.query_heads, loaded.shape.kv_heads) == (2, 4, 2)
    assert loaded.guidance == 3.0


def test_weights_have_one_fingerprint_in_both_dtypes(stickers: JanusModel) -> None:
    assert load_model("stickers", dtype="bfloat16").shape.weights == stickers.shape.weights


def test_other_weights_have_another_fingerprint(tiny_folder: Path, tiny: JanusModel) -> None:
    loaded = load_model(str(tiny_folder))
    with torch.no_grad():
        loaded.decoder.layers[1].mlp.down_proj.weight.mul_(1.5)  # type: ignore[attr-defined, index, union-attr]
    again = JanusModel(loaded.network, loaded.tokenizer, "changed")  # type: ignore[attr-defined]
    assert again.shape.weights != tiny.shape.weights
    assert again.shape.architecture == tiny.shape.architecture


def test_the_bundled_model_has_heads_enough(stickers: JanusModel) -> None:
    assert stickers.shape.layers >= 8
    assert stickers.shape.layers * stickers.shape.kv_heads >= 64
    from headscope.models.registry import bundled_folder

    folder = bundled_folder("stickers")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}  # type: ignore[union-attr]
    assert sum(sizes.values()) <= 20e6
    assert all(size < 12e6 for name, size in sizes.items() if name.endswith(".safetensors"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sticker", "known models are stickers"),
        ("deepseek-ai/Janus-Pro-1B", "deepseek-community/Janus-Pro-1B"),
        ("./nowhere", "neither a known model nor a folder"),
    ],
)
def test_an_unknown_name_is_answered(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="type 'bert'"):
        load_model(str(tmp_path))


def test_a_cut_weight_file_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_prompts_are_encoded_as_generate_does(tiny: JanusModel) -> None:
    prefix = tiny.encode(["red apple", "dog"], length=6)
    words = tiny.tokenizer.convert_ids_to_tokens(prefix.ids[0])
    assert words == ["<pad>", "<pad>", "<s>", "red", "apple", "<begin_of_image>"]
    assert prefix.mask[0].tolist() == [0, 0, 1, 1, 1, 1]
    bare = tiny.tokenizer.convert_ids_to_tokens(prefix.unconditional_ids[0])
    assert bare == ["<pad>", "<pad>", "<s>", "<pad>", "<pad>", "<begin_of_image>"]


@pytest.mark.parametrize(
    ("prompts", "says"),
    [([], "No prompt"), (["red apple", "  "], "Prompt 2 of 2 is empty"), (["apple " * 80], "82 tokens long, tiny admits 64")],
)
def test_impossible_prompts_are_refused(tiny: JanusModel, prompts: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        tiny.encode(prompts)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    tokens = torch.arange(8, dtype=torch.int32).view(2, 4)
    made = Samples(["a", "b"], ["A", "B"], torch.tensor([3, 2**40]), tokens, 5.0, 1.0, None, "m", "w")
    back = Samples.load(made.save(tmp_path / "s.parquet"))
    assert torch.equal(back.tokens, tokens)
    assert back.seeds.tolist() == [3, 2**40]
    assert (back.prompts, back.texts, back.guidance, back.top_k, back.weights) == (["a", "b"], ["A", "B"], 5.0, None, "w")
    assert back.select([1]).prompts == ["b"]
    (tmp_path / "s.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="not a file of recorded pictures"):
        Samples.load(tmp_path / "s.parquet")
