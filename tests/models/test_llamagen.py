"""LlamaGen from its own files is the published network: tokens, pixels, and every step of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.errors import DataError
from headscope.models import Samples, load_model
from headscope.models.llamagen import LlamaGenModel
from headscope.pipeline import check_model, default_prompts
from headscope.policy import CacheSpec, Policy, load_policy
from headscope.runtime import Sampling, decoder_name, generate
from headscope.tuning import Replay
from tests.cli.command import headscope
from tests.llamagen import CODES, Slow, Tensors, Tiny, transformer, vq_model, write_llamagen

SIZE = Tiny()
CLASSES = ["3", "0", "9", "7"]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return transformer(SIZE)


@pytest.fixture(scope="module")
def folder(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llamagen(tmp_path_factory.mktemp("llamagen") / "Toy", SIZE, tensors, "classes.pt")


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaGenModel:
    return load_model(str(folder), device="cpu")  # type: ignore[return-value]


def everything(model: LlamaGenModel) -> Policy:
    """All is kept, by heads that choose and by heads that do not."""
    heavy = torch.tensor([[15, 8, 0, 16]]).expand(model.shape.layers, -1)
    found = Policy.uniform(model.shape, window=15 - heavy.clamp(max=15), heavy=heavy, stride=4, prefix=model.max_prefix)
    assert found.keeps_everything
    return found


@pytest.mark.parametrize("prompts", [CLASSES[:1], CLASSES], ids=["one", "four"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_tokens_are_those_of_the_published_network(
    model: LlamaGenModel, tensors: Tensors, prompts: list[str], guidance: float
) -> None:
    expected = [Slow(tensors, SIZE).greedy(int(prompt), guidance) for prompt in prompts]
    assert len({code for codes in expected for code in codes}) > 3
    sampling, whole = Sampling(guidance=guidance, temperature=0.0), everything(model)
    assert generate(model, prompts, sampling=sampling).tokens.tolist() == expected
    assert decoder_name(model, whole) == "llama_cpu"
    for decoder in ("llama_cpu", "transformers"):
        assert generate(model, prompts, sampling=sampling, policy=whole, decoder=decoder).tokens.tolist() == expected


@pytest.mark.parametrize("interval", [0, 5])
def test_behind_an_interval_nothing_is_guided(model: LlamaGenModel, tensors: Tensors, tmp_path: Path, interval: int) -> None:
    """LlamaGen counts tokens from the second on: with n, tokens 0 to n + 1 are guided."""
    slow, sampling = Slow(tensors, SIZE), Sampling(guidance=4.0, temperature=0.0, cfg_interval=interval)
    expected = [slow.greedy(int(prompt), 4.0, interval + 1) for prompt in CLASSES]
    assert expected != [slow.greedy(int(prompt), 4.0) for prompt in CLASSES]
    for policy in (None, everything(model)):
        assert generate(model, CLASSES, policy=policy, sampling=sampling).tokens.tolist() == expected
    recorded = generate(model, CLASSES[:1], 0, sampling=replace(sampling, temperature=1.0))
    recorded.save(tmp_path / "samples.parquet")
    samples = Samples.load(tmp_path / "samples.parquet")
    replay = Replay(model, samples)
    codes = samples.tokens[0].tolist()
    of, nothing = (slow.logits(3, codes[:15], stream) for stream in (0, 1))
    guided = torch.cat([nothing[: interval + 2].lerp(of[: interval + 2], 4.0), of[interval + 2 :]]).log_softmax(-1)
    assert torch.allclose(replay._recorded[0], guided[torch.arange(1, 16), codes[1:]], atol=1e-3)
    assert replay.measure(everything(model)).kl < 1e-6
    with pytest.raises(DataError, match="cfg_interval -2: expected a number of tokens from 0, or -1"):
        Sampling(cfg_interval=-2)


@pytest.mark.parametrize("size", [Tiny(heads=2, head_dim=100), Tiny(heads=3, head_dim=12)], ids=["of 100", "of 12"])
def test_heads_of_any_multiple_of_four_numbers(size: Tiny, tmp_path: Path) -> None:
    tensors = transformer(size)
    model = load_model(str(write_llamagen(tmp_path / "Toy", size, tensors, "classes.pt")), device="cpu")
    policy = Policy.uniform(model.shape, window=8, heavy=7, stride=4, prefix=1)
    expected = Slow(tensors, size).greedy(5, 3.0)
    for kept in (None, policy):
        found = generate(model, ["5"], policy=kept, sampling=Sampling(guidance=3.0, temperature=0.0))
        assert found.tokens[0].tolist() == expected


@torch.inference_mode()
def test_logits_are_those_of_the_published_network(model: LlamaGenModel, tensors: Tensors) -> None:
    codes = torch.randint(0, CODES, (1, 15), generator=torch.Generator().manual_seed(1))
    embeds = torch.cat([model.embed_prefix(model.tokenize(["3"]).ids), model.embed_tokens(codes)], 1)
    expected = Slow(tensors, SIZE).logits(3, codes[0].tolist())
    assert torch.allclose(model.logits(model.forward(embeds, None))[0], expected, atol=2e-4)


def test_images_are_those_of_the_vq_model(model: LlamaGenModel) -> None:
    codes = torch.randint(0, CODES, (2, 16), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = ((vq_model(4).decode(codes) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(model.to_images(codes), expected.permute(0, 2, 3, 1))


def test_it_is_what_it_is_taken_for(model: LlamaGenModel) -> None:
    assert [finding.sentence() for finding in check_model(model, CLASSES) if finding.wrong] == []


@pytest.mark.parametrize("wrapping", ["model", "module", "state_dict", None])
def test_checkpoints_of_every_training_are_one_model(
    model: LlamaGenModel, tensors: Tensors, tmp_path: Path, wrapping: str | None
) -> None:
    stored = {**tensors, "freqs_cis": torch.zeros(17, 2, 2)}
    other = load_model(str(write_llamagen(tmp_path / "other", SIZE, stored, "any.pt", wrapping)), device="cpu")
    assert (other.shape.weights, other.shape.architecture) == (model.shape.weights, model.shape.architecture)


def test_safetensors_beside_a_side_file_are_the_same_model(model: LlamaGenModel, tensors: Tensors, tmp_path: Path) -> None:
    settings = {"heads": 4, "grid": 4, "guidance": 2.5, "top_k": 10, "cfg_interval": 7}
    folder = write_llamagen(tmp_path / "other", SIZE, tensors, "model.safetensors", settings=settings)
    other = load_model(str(folder), device="cpu", dtype="bfloat16")
    assert (other.shape.weights, other.shape.architecture) == (model.shape.weights, model.shape.architecture)
    assert (other.guidance, other.top_k, other.dtype) == (2.5, 10, torch.bfloat16)
    assert Sampling().of(other).cfg_interval == 7
    assert torch.equal(other.to_images(torch.arange(16)[None]), model.to_images(torch.arange(16)[None]))
    assert (model.guidance, model.top_k, model.temperature) == (4.0, CODES, 1.0)


def test_classes_have_names_where_a_list_is_there(folder: Path, tensors: Tensors, tmp_path: Path) -> None:
    assert default_prompts(str(folder)) == [str(number) for number in range(10)]
    named = write_llamagen(tmp_path / "named", SIZE, tensors, "classes.pt")
    names = ["tench, Tinca", "crane", "owl", "crane", "cat", "dog", "hen", "fox", "elk", "ant"]
    (named / "classes.txt").write_text("\n".join(names))
    model = load_model(str(named), device="cpu")
    prefix = model.tokenize([" tinca ", "tench, Tinca", "OWL", "4"])
    assert prefix.ids[:, 0].tolist() == [0, 0, 2, 4]
    assert prefix.texts == ["tench, Tinca", "tench, Tinca", "owl", "cat"]
    assert prefix.unconditional_ids[:, 0].tolist() == [10] * 4
    assert default_prompts(str(named))[:4] == ["tench, Tinca", "1", "owl", "3"]
    with pytest.raises(DataError, match="names the classes 1, 3; give one by its number"):
        model.tokenize(["crane"])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("10", "class 10: Toy has classes 0 to 9"),
        ("a red apple", "no class of Toy, .* expected a number from 0 to 9"),
        ("-1", "class -1: Toy has classes 0 to 9"),
    ],
)
def test_what_is_no_class_is_refused(model: LlamaGenModel, prompt: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        model.tokenize([prompt])


def run_of(folder: Path, prompts: list[str], out: Path, capsys: Any, monkeypatch: Any) -> Path:
    """Every step of a run under a fifth of the cache."""
    file = out.parent / "prompts.txt"
    file.write_text("\n".join(prompts))
    ended = headscope(
        capsys, monkeypatch, "run", folder, "--out", out, "--prompts", file, "--quick", "--trials", 1, "--keep", "20%"
    )
    assert ended.status == 0, ended.err
    assert (out / "report.html").exists()
    return out


def test_a_fifth_of_the_cache_goes_through_every_step(tmp_path: Path, capsys, monkeypatch) -> None:
    size = Tiny(side=8)
    folder = write_llamagen(tmp_path / "model", size, transformer(size), "classes.pt")
    out = run_of(folder, ["3", "5"], tmp_path / "run", capsys, monkeypatch)
    policy = load_policy(out / "policy.safetensors", load_model(str(folder)).shape)
    assert policy.prefix == 1
    assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= 0.20
