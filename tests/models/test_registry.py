"""What a user types becomes a model, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Emu3Config, Emu3ForConditionalGeneration

from headscope.errors import DataError, ModelError
from headscope.models import Samples, load_model
from headscope.models.janus import JanusModel
from headscope.models.registry import resolve_device
from headscope.recipe.tokenizer import build_tokenizer


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
        ("./nowhere", "neither a known model nor a folder; known models are .*, or FILE.py:FUNCTION"),
        ("./mine.py", r"nor a folder; a function of yours is named too, such as \./mine\.py:load; known"),
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


def changed_copy(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The model folder once more, its tensors changed."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize(
    "lacks",
    [
        "model.language_model.layers.1.mlp.up_proj.weight",
        "model.generation_head.vision_head.weight",
        "model.generation_embeddings.weight",
        "model.vqmodel.decoder.conv_out.weight",
        "model.vqmodel.quantize.embedding.weight",
    ],
)
def test_a_folder_that_lacks_a_tensor_that_draws_is_refused_by_its_name(tiny_folder: Path, tmp_path: Path, lacks: str) -> None:
    folder = changed_copy(tiny_folder, tmp_path, lambda tensors: tensors.pop(lacks))
    with pytest.raises(ModelError, match=lacks.replace(".", r"\.")):
        load_model(str(folder))


def test_what_only_looks_at_images_may_be_missing(tiny_folder: Path, tmp_path: Path, tiny: JanusModel) -> None:
    def blind(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(("model.vision_model.", "model.vqmodel.encoder."))]:
            del tensors[name]

    assert load_model(str(changed_copy(tiny_folder, tmp_path, blind))).shape.weights == tiny.shape.weights


def test_an_adapter_that_was_not_merged_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    name = "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    folder = changed_copy(tiny_folder, tmp_path, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    with pytest.raises(ModelError, match="lora_A"):
        load_model(str(folder))


def test_a_folder_of_another_class_is_refused(tmp_path: Path) -> None:
    """Emu3's whole model has a family that transformers reads as text, and other names for every tensor."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Emu3Config(
        text_config={**sizes, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0},
        vq_config={"codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1],
                   "num_res_blocks": 1, "hidden_size": 32},
        vocabulary_map={"<image>": 4},
    )  # fmt: skip
    Emu3ForConditionalGeneration(config).save_pretrained(tmp_path)
    build_tokenizer(["red apple"], 512).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks lm_head\.weight, model\.embed_tokens\.weight, model\..* of another class"):
        load_model(str(tmp_path))


def test_prompts_are_encoded_as_generate_does(tiny: JanusModel) -> None:
    prefix = tiny.tokenize(["red apple", "dog"], length=6)
    words = tiny.tokenizer.convert_ids_to_tokens(prefix.ids[0])
    assert words == ["<pad>", "<pad>", "<s>", "red", "apple", "<begin_of_image>"]
    assert prefix.mask[0].tolist() == [0, 0, 1, 1, 1, 1]
    bare = tiny.tokenizer.convert_ids_to_tokens(prefix.unconditional_ids[0])
    assert bare == ["<pad>", "<pad>", "<s>", "<pad>", "<pad>", "<begin_of_image>"]


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([], "No prompt"),
        (["red apple", "  "], "Prompt 2 of 2.* is empty"),
        (["\ud800"], "Prompt 1 of 1"),
        (["apple " * 80], "82 tokens long, tiny admits 64"),
    ],
)
def test_impossible_prompts_are_refused(tiny: JanusModel, prompts: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        tiny.tokenize(prompts)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    tokens = torch.arange(8, dtype=torch.int32).view(2, 4)
    made = Samples(["a", "b"], ["A", "B"], torch.tensor([3, 2**40]), tokens, 5.0, 1.0, None, "m", "w")
    back = Samples.load(made.save(tmp_path / "s.parquet"))
    assert torch.equal(back.tokens, tokens)
    assert back.seeds.tolist() == [3, 2**40]
    assert (back.prompts, back.texts, back.guidance, back.top_k, back.weights) == (["a", "b"], ["A", "B"], 5.0, None, "w")
    assert back.select([1]).prompts == ["b"]
    (tmp_path / "s.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="not a file of recorded images"):
        Samples.load(tmp_path / "s.parquet")


def test_auto_is_cuda_where_there_is_one_and_bfloat16_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # no device is touched
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (resolve_device("auto"), resolve_device("cuda:1"), resolve_device("cpu")) == ("cuda", "cuda:1", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


def test_a_model_says_what_auto_became() -> None:
    model = load_model("stickers")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert model.device.type == expected
    assert model.dtype == (torch.float32 if expected == "cpu" else torch.bfloat16)


@pytest.mark.parametrize("device", ["meat", "cuda:99", ""])
def test_a_device_that_can_not_be_used_is_one_sentence(device: str) -> None:
    with pytest.raises(ModelError, match="not usable here"):
        resolve_device(device)


@pytest.mark.parametrize(
    "config",
    ['{"model_type": "janus", "text_config": 5}', '{"model_type": ["janus"]}', '{"model_type": "llama", "hidden_size": "x"}'],
)
def test_a_configuration_that_is_none_is_one_sentence(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError) as told:
        load_model(str(tmp_path))
    assert "\n" not in str(told.value)
