"""What somebody who has the weights can paste into an issue: twenty lines, without paths and prompts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from headscope.geometry import Geometry
from headscope.models import RasterModel, register_model, registry
from headscope.models.janus import JanusModel
from headscope.pipeline import verify_model
from headscope.provenance import version_of
from headscope.runtime import generate
from tests.cli.command import headscope
from tests.models.test_raster import CARD, gpt2, model_of
from tests.pipeline.test_model_check import NAMED, Unmasked
from tests.tiny import tiny_model

PROMPTS = ["red apple", "a blue car", "dog"]


def lines(model: Any, prompts: list[str] = PROMPTS, name: str = "mine") -> dict[str, str]:
    """The report, the checks numbered."""
    found = list(verify_model(model, prompts, name))
    return {line.what if line.what != "check" else f"check {number}": line.text for number, line in enumerate(found)}


def test_it_is_twenty_lines_of_what_the_model_is(tiny: JanusModel, tiny_folder: Path) -> None:
    found = lines(tiny, name=str(tiny_folder))
    assert len(found) == 20
    assert found["model"] == "a folder of Janus in transformers' format"
    assert found["versions"].startswith(f"headscope {version_of('headscope')}, torch {torch.__version__}, transformers ")
    assert found["decoder"] == "2 layers of 4 query and 2 KV heads of 8 numbers, prompts of at most 64 tokens"
    assert found["image"] == "4 x 4 tokens, 16 codes"
    assert found["sampling"] == "guidance 3, temperature 1, all codes"
    assert found["fingerprint"] == f"architecture {tiny.shape.architecture[:16]}, weights {tiny.shape.weights[:16]}"
    assert [text.split(", ")[0] for what, text in found.items() if what.startswith("check")] == ["not known", *["ok"] * 8]
    assert found["images"].startswith("4 of 16 x 16 pixels in ")
    assert found["agreement"] == "100 % of 32 likeliest tokens are those of transformers' generate"
    assert re.fullmatch(r"[\d.]+ ms for a token of 4 images, by decoder transformers", found["step"])
    # Streams, layers, keys and values, KV heads, head size, float32; the longest prompt has 5 tokens.
    assert f"cache of 4 images {4 * 2 * 2 * 2 * 2 * 8 * 4 * (5 + 16) / 1024:.1f} KiB" in found["memory"]


def test_the_same_weights_give_the_same_tokens(tiny: JanusModel) -> None:
    first, second = (re.findall("tokens (.*)", lines(model)["images"]) for model in (tiny, tiny_model()))
    other = tiny_model()
    with torch.no_grad():
        for parameter in other.network.model.generation_head.parameters():
            parameter.mul_(-1)
    assert first == second != re.findall("tokens (.*)", lines(other)["images"])


def test_other_tokens_than_the_familys_own_are_told() -> None:
    class Other(JanusModel):
        """One whose family draws another fourth token in the second image."""

        def own_tokens(self, prompts: list[str]) -> torch.Tensor:
            tokens = super().own_tokens(prompts)
            tokens[1, 3] += 1
            return tokens

    plain = tiny_model()
    found = [line for line in verify_model(Other(plain.network, plain.tokenizer, "other"), PROMPTS, "mine") if line.wrong]
    assert [line.what for line in found] == ["agreement"]
    assert found[0].text.startswith("97 % of 32")
    assert found[0].text.endswith("the first other token is number 4")


def test_what_is_wrong_is_told_without_prompts_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Unmasked):
        def to_images(self, tokens: torch.Tensor) -> torch.Tensor:
            raise OSError(f"no codebook in '{tmp_path}/my secret' for dog, nor in C:\\mine\\it")

    model = Broken(gpt2(), "mine", geometry=Geometry(4, 4), codes=(3, 12), start=[0], prompts=NAMED)
    found = lines(model, list(NAMED))
    told = "\n".join(found.values())
    assert str(tmp_path) not in told
    assert "mine\\it" not in told
    assert not re.search(r"\b(cat|dog)\b", told)
    assert "WRONG, padding changes nothing: " in told
    assert "of 'prompt 1', alone and beside another" in told
    assert found["images"].startswith("WRONG, failed with OSError (no codebook in 'PATH")
    assert found["step"].endswith("ms for a token of 4 images, by decoder transformers")


def test_a_family_without_a_generate_of_its_own_says_so(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secret"
    gpt2().save_pretrained(folder)
    (folder / "headscope.toml").write_text(CARD)
    ended = headscope(capsys, monkeypatch, "models", "verify", folder, "--device", "cpu")
    assert (ended.status, ended.out.count("\n")) == (0, 20)
    assert "agreement    nothing to compare with: transformers generates no images of this family" in ended.out
    assert "model        a folder of a network of one's own" in ended.out
    assert "secret" not in ended.out
    assert not re.search(r"\b(cat|dog|bird)\b", ended.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]  # nothing is written


def test_the_command_ends_with_1_where_something_is_wrong(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register_model("mine", lambda device, dtype: Unmasked(
        gpt2(), "mine", geometry=Geometry(4, 4), codes=(3, 12), start=[0], prompts=NAMED))  # fmt: skip
    ended = headscope(capsys, monkeypatch, "models", "verify", "mine", "--prompt", "cat", "--prompt", "dog")
    assert (ended.status, ended.out.count("WRONG")) == (1, 1)


def test_the_list_says_what_each_needs_and_whether_it_ran(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {"mine": lambda device, dtype: model_of(gpt2())})
    printed = headscope(capsys, monkeypatch, "models").out.splitlines()
    told = {name.split()[0]: needs.strip() for name, needs in zip(printed[::2], printed[1::2], strict=True)}
    assert told["stickers"] == "needs nothing else; run on real weights: yes"
    for name in ("deepseek-ai/Janus-Pro-7B", "deepseek-community/Janus-Pro-1B"):
        assert told[name] == "needs a download, transformers alone; run on real weights: no, random weights only"
    assert told["mine"].endswith("whoever wrote it knows")
    assert "Janus and LlamaGen no" in told["FOLDER"]


def test_greedy_tokens_of_the_familys_own_are_a_models(tiny: JanusModel) -> None:
    own = tiny.own_tokens(["red apple", "dog"])
    assert own.shape == generate(tiny, ["red apple", "dog"]).tokens.shape
    assert isinstance(model_of(gpt2()), RasterModel)
    assert not hasattr(model_of(gpt2()), "own_tokens")
