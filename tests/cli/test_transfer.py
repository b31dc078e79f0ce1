"""`headscope policy transfer`: names the kind, writes a policy that says it was not measured, or says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import headscope as package
from headscope.models import load_model
from headscope.policy import Policy, load_policy
from headscope.storage import read_json, write_json
from headscope.tuning import LimitConfig, PromptConfig
from tests.cli.command import headscope

JANUS = "deepseek-community/Janus-Pro-7B"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A searched run of the tiny model."""
    out = tmp_path_factory.mktemp("transfer") / "run"
    prompts = PromptConfig(texts=("red apple", "dog", "blue car", "red car"), calibration=2, unseen=2)
    limit, search = LimitConfig(keep="80%"), package.SearchConfig(trials=1, table_images=2, options=6)
    package.run(package.RunConfig(model=str(tiny_folder), prompts=prompts, limit=limit, search=search), out)
    return out


def test_by_map_to_a_published_model_without_its_weights(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("policy", "transfer", "stickers-20", "--to", JANUS, "--map", "janus-pro-7b", "--prefix", 40)
    ended = headscope(capsys, monkeypatch, *asked)
    assert ended.status == 0, ended.err
    assert "transferred by map from stickers-20, by the losses of its heads" in ended.out
    assert "not measured on Janus-Pro-7B yet; policy: janus-pro-7b-20.safetensors" in ended.out
    made = load_policy("janus-pro-7b-20.safetensors")
    assert (made.shape.layers, made.shape.kv_heads, made.shape.weights, made.prefix) == (30, 32, "", 40)
    assert made.spec().share_of(made) <= 0.2
    shown = headscope(capsys, monkeypatch, "policy", "show", "janus-pro-7b-20.safetensors").out
    assert "transferred from stickers-20, by map" in shown
    assert "has not been measured on Janus-Pro-7B" in shown
    again = headscope(capsys, monkeypatch, *asked)
    assert again.status == 2
    assert "exists already" in again.err
    since = {**made.provenance["transferred"], "measured": True}
    made.replace(provenance={**made.provenance, "transferred": since}).save("janus-pro-7b-20.safetensors")
    assert "been measured" not in headscope(capsys, monkeypatch, "policy", "show", "janus-pro-7b-20.safetensors").out


def test_a_search_writes_the_rule_and_its_policy_goes_by_trace(run: Path, tmp_path: Path) -> None:
    policy = load_policy(run / "policy.safetensors")
    assert policy.rule is not None
    assert policy.rule.loss.shape == (2, 2, 6)
    made = package.transfer("stickers-20", str(load_model_of(run)), trace=run, limit=LimitConfig(keep="70%"))
    assert made.provenance["transferred"]["kind"] == "by trace"
    assert made.shape == policy.shape
    back = package.transfer([policy, "stickers-20"], "stickers")
    assert back.provenance["transferred"] | {"weights": 0} == {
        "from": f"{policy.shape.name}, stickers-20",
        "weights": 0,
        "kind": "by depth",
        "by": "the losses of its heads",
        "rule": True,
        "measured": False,
    }
    assert back.shape == load_model("stickers").shape


def load_model_of(run: Path) -> str:
    return read_json(run / "run.json")["model"]["source"]


def test_a_run_of_the_source_stands_in_for_a_rule(run: Path) -> None:
    plain = load_policy(run / "policy.safetensors").replace(rule=None)
    kinds = [package.transfer(plain, "stickers", source=each).provenance["transferred"]["rule"] for each in (None, run)]
    assert kinds == [False, True]


def refused(capsys, monkeypatch, tmp_path: Path, *arguments: object) -> str:
    out = tmp_path / "out.safetensors"
    ended = headscope(capsys, monkeypatch, "policy", "transfer", *arguments, "-o", out)
    assert ended.status == 2
    assert ended.err.lower().count("error: ") == 1
    assert ended.err.lower().splitlines()[-1].startswith("error: ")
    assert not out.exists()
    return ended.err


def test_what_can_not_be_is_one_sentence_and_writes_nothing(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def said(*arguments: object) -> str:
        return refused(capsys, monkeypatch, tmp_path, *arguments)

    model = load_model_of(run)
    text = tmp_path / "text.safetensors"
    shape = package.ModelShape("a text model", 2, 2, 2, 8, package.Geometry(1, 64), "a", "w")
    Policy.uniform(shape, window=3, stride=1, prefix=2).save(text)
    assert "a text model, which writes text, a single row of tokens; stickers writes images" in said(text, "--to", "stickers")
    assert "keep 0.2%: too small for Janus-Pro-7B" in said("stickers-20", "--to", JANUS, "--keep", "0.2%")
    assert "No choice of options fits" in said("stickers-20", "--to", JANUS, "--keep", "2%")
    assert "has 24 lines, expected 30" in said("stickers-20", "--to", JANUS, "--map", "janus-pro-1b")
    assert "is a run of" in said("stickers-20", "--to", "stickers", "--trace", run)
    assert "no run.json here" in said("stickers-20", "--to", "stickers", "--trace", tmp_path)
    assert "name a run of the policy's own model as --source" in said("stickers-20", "--to", "stickers", "--source", run)
    assert "neither a known model nor a folder" in said("stickers-20", "--to", "nosuch")
    assert "policy file; make one" in said("nosuch", "--to", "stickers")
    assert "give --keep or --memory" in said("stickers-20", "--to", "stickers", "--keep", "2%", "--memory", "1MiB")
    other = shutil.copytree(run, tmp_path / "other")
    facts = read_json(other / "run.json")
    write_json(other / "run.json", {**facts, "model": {**facts["model"], "weights": "f" * 64}})
    assert "is a trace of other weights than" in said("stickers-20", "--to", model, "--trace", other)
    write_json(other / "run.json", {**facts, "model": {**facts["model"], "kv_heads": 3}})
    assert "expected a multiple of model.kv_heads" in said("stickers-20", "--to", model, "--trace", other)


def test_a_published_shape_takes_a_policy_in_either_format() -> None:
    community, original = (load_policy_shape(owner) for owner in ("deepseek-community", "deepseek-ai"))
    assert community == original
    assert torch.tensor([community.layers, community.kv_heads, community.head_dim]).tolist() == [24, 16, 128]


def load_policy_shape(owner: str) -> package.ModelShape:
    from headscope.models import published_shape

    shape = published_shape(f"{owner}/Janus-Pro-1B")
    assert shape is not None
    return shape
