"""LlamaGen after captions: features from a file or from the encoder, an empty caption under the same mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from headscope.errors import DataError, ModelError
from headscope.models import Samples, load_model, source_of, split_name
from headscope.models.llamagen import LlamaGenModel
from headscope.pipeline import check_model, default_prompts, open_run
from headscope.policy import Policy, load_policy
from headscope.run_folder import RunFolder
from headscope.runtime import Sampling, generate
from tests.cli.command import headscope
from tests.llamagen import Slow, Tensors, Tiny, transformer, write_llamagen
from tests.models.test_llamagen import run_of

SIZE = Tiny(slots=6)
CAPTIONS = ["a red apple", "dog", "a blue car on a road", "two cats"]
LENGTHS = (3, 1, 6, 2)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return transformer(SIZE)


@pytest.fixture(scope="module")
def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(length, SIZE.features, generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tensors: Tensors, features: list[torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_llamagen(tmp_path_factory.mktemp("captions") / "Toy", SIZE, tensors, "captions.pt", "module")
    write_features(folder / "features.safetensors", features)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaGenModel:
    return load_model(str(folder), device="cpu")  # type: ignore[return-value]


def write_features(file: Path, features: list[torch.Tensor], captions: list[str] | None = CAPTIONS, left: bool = False) -> None:
    """As a script of anybody's may write them: padded on either side by what is not 0."""
    padded, mask = torch.full((len(features), 7, features[0].shape[1]), 9.0), torch.zeros(len(features), 7, dtype=torch.bool)
    for row, found in enumerate(features):
        place = slice(7 - len(found), 7) if left else slice(0, len(found))
        padded[row, place], mask[row, place] = found, True
    told = None if captions is None else {"captions": json.dumps(captions)}
    save_file({"features": padded, "mask": mask}, file, told)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_tokens_are_those_of_the_published_network(
    model: LlamaGenModel, tensors: Tensors, features: list[torch.Tensor], count: int, guidance: float
) -> None:
    expected = [Slow(tensors, SIZE).greedy(found, guidance) for found in features[:count]]
    assert len({code for codes in expected for code in codes}) > 3
    sampling = Sampling(guidance=guidance, temperature=0.0)
    heavy = torch.tensor([[15, 8, 0, 16]]).expand(2, -1)
    whole = Policy.uniform(model.shape, window=15 - heavy.clamp(max=15), heavy=heavy, stride=4, prefix=6)
    for policy in (None, whole):
        assert generate(model, CAPTIONS[:count], sampling=sampling, policy=policy).tokens.tolist() == expected


@torch.inference_mode()
def test_both_prefixes_are_those_of_the_published_network(
    model: LlamaGenModel, tensors: Tensors, features: list[torch.Tensor]
) -> None:
    prefix, expected = model.tokenize(CAPTIONS[:1]), Slow(tensors, SIZE).prefixes(features[0])
    for ids, wanted in zip((prefix.ids, prefix.unconditional_ids), expected, strict=True):
        assert torch.allclose(model.embed_prefix(ids)[0], wanted, atol=1e-5)


def test_a_caption_has_one_place(model: LlamaGenModel) -> None:
    first = model.tokenize(["two cats", "dog", "dog"])
    again = model.tokenize(["dog", "a blue car on a road"])
    assert first.ids[1].tolist() == first.ids[2].tolist() == again.ids[0].tolist()
    with pytest.raises(DataError, match='"a fox": not among'):
        model.tokenize(["dog", "a fox"])
    assert torch.equal(model.tokenize(["two cats"]).ids[0], first.ids[0])


def test_the_null_prompt_stands_under_the_mask_of_the_caption(model: LlamaGenModel) -> None:
    prefix = model.tokenize(["dog", "a red apple"])
    assert prefix.mask.tolist() == prefix.unconditional_mask.tolist() == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]]
    assert prefix.unconditional_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert model.token_strings(prefix.ids[1, 3:]) == ["▁1", "▁2", "▁3"]
    assert (model.guidance, model.top_k, model.max_prefix) == (7.5, 64, 6)


def test_it_is_what_it_is_taken_for(folder: Path, model: LlamaGenModel) -> None:
    assert default_prompts(str(folder)) == CAPTIONS
    assert [finding.sentence() for finding in check_model(model, CAPTIONS) if finding.wrong] == []


def test_a_list_may_stand_beside_features_padded_on_the_left(
    model: LlamaGenModel, tensors: Tensors, features: list[torch.Tensor], tmp_path: Path
) -> None:
    folder = write_llamagen(tmp_path / "other", SIZE, tensors, "captions.pt")
    write_features(folder / "features.safetensors", features, None, left=True)
    (folder / "features.txt").write_text("\n".join(CAPTIONS))
    other = load_model(str(folder), device="cpu")
    found, expected = (one.embed_prefix(one.tokenize(CAPTIONS).ids) for one in (other, model))
    assert torch.equal(found, expected)


def write_encoder(folder: Path, width: int = SIZE.features) -> tuple[Any, T5EncoderModel]:
    """A random T5 encoder with a tokenizer of words, which ends every text."""
    words = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁apple", "▁dog", "▁blue", "▁car", "▁on", "▁two", "▁cats"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    network = T5EncoderModel(config).to(torch.bfloat16).eval()
    network.save_pretrained(folder)
    fast.save_pretrained(folder)
    return fast, network


def test_the_encoder_gives_what_a_file_of_its_features_gives(tensors: Tensors, tmp_path: Path) -> None:
    folder = write_llamagen(tmp_path / "Toy", SIZE, tensors, "captions.pt")
    tokenizer, network = write_encoder(folder / "flan-t5-xl")
    model: Any = load_model(str(folder), device="cpu")
    assert len(default_prompts(str(folder))) == 32
    prefix = model.tokenize(["A  red <b>apple</b>"])
    assert model.token_strings(prefix.ids[0, 2:]) == ["▁a", "▁red", "▁apple", "</s>"]
    batch = tokenizer(["a red apple"], padding="max_length", max_length=6, return_tensors="pt")
    with torch.inference_mode():
        found = network(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[0, :4]
    expected = Slow(tensors, SIZE).prefixes(found.float())[0]
    assert torch.allclose(model.embed_prefix(prefix.ids)[0, 2:], expected[2:], atol=0.02)
    alone = write_llamagen(tmp_path / "alone", SIZE, tensors, "captions.pt")
    model.prompts.save(["dog", "two cats"], alone / "features.safetensors")
    other = load_model(str(alone), device="cpu")
    embeds = [one.embed_prefix(one.tokenize(["two cats"]).ids) for one in (model, other)]
    assert torch.equal(*embeds)
    assert load_file(alone / "features.safetensors")["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    with pytest.raises(DataError, match="7 tokens, at most 6 are read: shorten it"):
        model.tokenize(["a dog on a red car"])


def test_features_lie_anywhere_and_a_run_remembers_where(
    tensors: Tensors, features: list[torch.Tensor], tmp_path: Path, capsys, monkeypatch
) -> None:
    folder, file = write_llamagen(tmp_path / "Toy", SIZE, tensors, "captions.pt"), tmp_path / "other & more.safetensors"
    write_features(file, features)
    monkeypatch.chdir(tmp_path)
    asked = ("--features", file.name, "--no-fold-prefix")
    ended = headscope(capsys, monkeypatch, "trace", "Toy", "--out", "run", "--calibration", 2, "--unseen", 2, *asked)
    assert ended.status == 0, ended.err
    run = RunFolder(tmp_path / "run")
    monkeypatch.chdir(tmp_path.parent)
    name = source_of(run)
    assert split_name(name) == (str(folder), {"features": str(file), "fold_prefix": "false"})
    model = load_model(name, device="cpu")
    assert (model.name, model.shape.folds_prefix, default_prompts(name)) == ("Toy", False, CAPTIONS)
    assert Samples.load(run.samples).prompts == CAPTIONS[::2]
    assert open_run(run.path).model.tokenize(CAPTIONS).ids.shape == (4, 6)
    ended = headscope(capsys, monkeypatch, "generate", folder, "dog", *("--features", file, "--out", tmp_path / "images"))
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{folder}?fold=1", r"takes no setting fold \(features, fold_prefix\)"),
        ("stickers?fold_prefix=false", r"stickers: takes no setting fold_prefix \(none at all\); a folder with a LlamaGen"),
        ("{folder}?fold_prefix=no", 'fold_prefix is "no", expected true or false'),
        (
            "{folder}?features=none.safetensors",
            r"none\.safetensors: no such file, expected a safetensors file with the features",
        ),
    ],
)
def test_settings_that_are_none_are_refused(folder: Path, name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(name.format(folder=folder), device="cpu")


def test_a_model_of_classes_reads_no_features(tmp_path: Path) -> None:
    folder = write_llamagen(tmp_path / "Toy", Tiny(), transformer(Tiny()), "classes.pt")
    with pytest.raises(ModelError, match=r"takes classes and reads no captions: leave the features f\.safetensors out"):
        load_model(f"{folder}?features=f.safetensors", device="cpu")


def test_a_fifth_of_the_cache_goes_through_every_step(tmp_path: Path, capsys, monkeypatch) -> None:
    size = Tiny(side=8, slots=6)
    folder = write_llamagen(tmp_path / "model", size, transformer(size), "captions.pt")
    features = [torch.randn(length, size.features, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    write_features(folder / "features.safetensors", features)
    out = run_of(folder, CAPTIONS[:2], tmp_path / "run", capsys, monkeypatch)
    assert load_policy(out / "policy.safetensors", load_model(str(folder)).shape).prefix == 6


ONE = {"captions": '["dog"]'}
BAD = [
    (lambda f, features: write_features(f, features, CAPTIONS[:3]), "has features of 4 captions, but 3 captions"),
    (lambda f, features: write_features(f, features, None), "features.txt: no such list of captions"),
    (lambda f, features: write_features(f, [one[:, :8] for one in features]), r"features \[4, 7, 8\] with a mask \[4, 7\]"),
    (lambda f, features: save_file({"features": torch.zeros(1, 2, 16)}, f), "expected features, mask and captions in safe"),
    (lambda f, features: write_features(f, features, list("abca")), 'caption 4, "a", stands there twice, first as caption 1'),
    (lambda f, features: write_features(f, features, ["a", "b", "c", 4]), "caption 4 is 4, expected a text"),
    (lambda f, features: save_file({"features": torch.zeros(1, 2, 16).int(), "mask": torch.ones(1, 2)}, f, ONE), "are of I32"),
    (lambda f, features: f.write_bytes(b"features"), "expected features, mask and captions in safe"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_features_that_do_not_fit_are_one_sentence(
    tensors: Tensors, features: list[torch.Tensor], tmp_path: Path, damage: Any, says: str
) -> None:
    folder = write_llamagen(tmp_path / "Toy", SIZE, tensors, "captions.pt")
    damage(folder / "features.safetensors", features)
    with pytest.raises(ModelError, match=says) as told:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(told.value)


def test_a_caption_without_features_is_one_sentence(model: LlamaGenModel, tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'"a fox": not among the 4 captions of features\.safetensors, .* no folder flan-t5-xl'):
        model.tokenize(["a fox"])
    bare = load_model(str(write_llamagen(tmp_path / "Toy", SIZE, tensors, "captions.pt")), device="cpu")
    with pytest.raises(DataError, match='"dog": no features of it, and there is no folder flan-t5-xl'):
        bare.tokenize(["dog"])
    write_encoder(tmp_path / "Toy" / "flan-t5-xl", 8)
    with pytest.raises(ModelError, match="gives 8 features a token, the model takes 16"):
        bare.tokenize(["dog"])


@pytest.mark.parametrize("wrong", ["nothing", "infinite"])
def test_features_that_are_none_are_refused(tensors: Tensors, features: list[torch.Tensor], tmp_path: Path, wrong: str) -> None:
    folder = write_llamagen(tmp_path / "Toy", SIZE, tensors, "captions.pt")
    first = features[0][:0] if wrong == "nothing" else features[0] / 0
    write_features(folder / "features.safetensors", [first, *features[1:]])
    with pytest.raises(DataError, match=r'caption 1, "a red apple", has [03] tokens, expected 1 to 6 of finite numbers'):
        load_model(str(folder), device="cpu").tokenize(CAPTIONS[:1])


@pytest.mark.parametrize("mask", [[1, 0, 1], [0.5, 0.5, 0.5], [2, 1, 1]])
def test_a_mask_that_is_none_is_refused(tensors: Tensors, tmp_path: Path, mask: list[float]) -> None:
    folder = write_llamagen(tmp_path / "Toy", SIZE, tensors, "captions.pt")
    told = {"captions": json.dumps(["dog"])}
    held = {"features": torch.randn(1, 3, SIZE.features), "mask": torch.tensor([mask])}
    save_file(held, folder / "features.safetensors", told)
    with pytest.raises(DataError, match='the mask of caption 1, "dog", has a gap or other numbers than 0 and 1; expected 1 at'):
        load_model(str(folder), device="cpu").tokenize(["dog"])
