"""`headscope generate`: images as they are done, gone on with, compared, and never more than fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from headscope.models import load_model
from headscope.policy import Policy, load_policy, save_policy
from headscope.runtime import generate
from headscope.samples import Samples
from tests.cli.command import headscope


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


@pytest.fixture
def policy(tiny_folder: Path, tmp_path: Path) -> Path:
    shape = load_model(str(tiny_folder)).shape
    return save_policy(Policy.uniform(shape, window=3, stride=4, prefix=8), tmp_path / "small.safetensors")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_each_prompt_several_times(command, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = command("generate", tiny_folder, "red apple", "dog", "-n", 3, "--batch", 2, "--seed", 7, "-o", out)
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in out.glob("*.png")) == [f"{number:04d}.png" for number in range(6)]
    model = load_model(str(tiny_folder))
    generated = generate(model, ["red apple"] * 3 + ["dog"] * 3, 7)
    for number, image in enumerate(model.to_images(generated.tokens)):
        np.testing.assert_array_equal(pixels(out / f"{number:04d}.png"), image.numpy())
    assert "cache: " in ended.out
    assert "2 at a time take" in ended.out
    assert "Prompts have 3 to 4 tokens; those of one length are generated together." in " ".join(ended.out.split())


def test_a_stopped_run_goes_on_and_draws_nothing_twice(
    command, tiny_folder: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("generate", tiny_folder, "red apple", "dog", "blue car", "--policy", policy, "-n", 2, "--batch", 2)
    assert command(*asked, "-o", tmp_path / "whole").status == 0
    real, calls = generate, []

    def stopped(*arguments, **settings) -> Samples:
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("headscope.runtime.batches.generate", stopped)
        assert command(*asked, "-o", out).status != 0
        assert sorted(path.name for path in out.glob("*.png")) == [
            "0002.png",
            "0003.png",
        ]  # the first batch: the shortest prompt
        (out / "0003.png").unlink()
        assert command(*asked, "-o", out).status == 0
    assert [len(prompts) for prompts in calls] == [2, 2, 2, 2]  # of four calls one was stopped
    for path in sorted((tmp_path / "whole").glob("*.png")):
        assert (out / path.name).read_bytes() == path.read_bytes()
    other = command(*asked, "--seed", 1, "-o", out)
    assert other.status == 2
    assert "generated with seed 0, not 1;" in other.err


def test_both_caches_side_by_side(command, tiny_folder: Path, policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = command("generate", tiny_folder, "red apple", "dog", "--policy", policy, "--compare", "-o", out)
    assert ended.status == 0, ended.err
    table = pd.read_parquet(out / "images.parquet")
    assert list(table["prompt"]) == ["red apple", "dog"]
    assert (out / "sheet.png").is_file()
    assert "pays when several" not in ended.out
    alone = command("generate", tiny_folder, "dog", "--policy", policy, "-o", tmp_path / "alone")
    assert "One at a time, a policy saves memory and hardly any time" in alone.out
    same = [(pixels(out / "full" / f"{n:04d}.png") == pixels(out / "policy" / f"{n:04d}.png")).all() for n in range(2)]
    assert list(table["token_agreement"] == 1.0) == same
    refused = command("generate", tiny_folder, "dog", "--compare", "-o", tmp_path / "o")
    assert refused.status == 2
    assert "name one with --policy" in refused.err


def test_what_does_not_fit_is_said_before_it_is_tried(
    command, tiny_folder: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.pipeline.free_memory", lambda device: 200_000)
    asked = ("generate", tiny_folder, "dog", "-n", 100, "--policy", policy, "-o", tmp_path / "out")
    refused = command(*asked, "--batch", 90)
    assert refused.status == 2
    assert "at most " in refused.err
    assert not (tmp_path / "out").exists()
    fits = refused.err.split("at most ")[1].split()[0]
    assert 1 < int(fits) < 90
    assert f"{fits} at a time take" in command(*asked, "--count", 1).out
    monkeypatch.setattr("headscope.pipeline.free_memory", lambda device: 100)
    assert "use a policy that keeps less" in command(*asked, "-o", tmp_path / "none").err
    assert "expected a number from 1, or auto" in command(*asked, "--batch", "many").err


def test_the_decoder_can_be_named_and_is_told(command, tiny_folder: Path, policy: Path, tmp_path: Path) -> None:
    asked = ("generate", tiny_folder, "dog", "--policy", policy, "--compare")
    out = tmp_path / "auto"
    ended = command(*asked, "-o", out)
    assert ended.status == 0, ended.err
    assert json.loads((out / "images.json").read_text())["decoder"] == {"full": "transformers", "policy": "llama_cpu"}
    assert "decoders transformers (full), llama_cpu (policy)" in ended.out
    named = command("generate", tiny_folder, "dog", "--policy", policy, "--decoder", "transformers", "-o", tmp_path / "named")
    assert "decoder transformers" in named.out
    assert (tmp_path / "named" / "0000.png").read_bytes() == (out / "policy" / "0000.png").read_bytes()
    other = command(*asked, "--decoder", "transformers", "-o", out)
    assert "decoder transformers, llama_cpu, not transformers, transformers;" in other.err
    refused = command("generate", tiny_folder, "dog", "--decoder", "llama_cpu", "-o", tmp_path / "none")
    assert refused.status == 2
    assert "needs a policy; use one that can run here: auto, transformers." in refused.err
    assert not (tmp_path / "none").exists()
    facts = json.loads((out / "images.json").read_text())
    (out / "images.json").write_text(json.dumps({name: value for name, value in facts.items() if name != "decoder"}))
    assert command(*asked, "-o", out).status == 0  # of an earlier version


def test_a_folder_of_other_things_is_left_alone(command, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "mine" / "0000.png")
    ended = command("generate", tiny_folder, "dog", "-o", tmp_path / "mine")
    assert ended.status == 2
    assert "no images.json" in ended.err
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in command("generate", tiny_folder, "dog", "-o", file).err


def test_a_refused_run_leaves_the_folder_free(command, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong in (
        ("--guidance", "nan"),
        ("--temperature", -1),
        ("--seed", 2**63),
        ("--seed", 2**63 - 1, "-n", 2),
    ):
        ended = command("generate", tiny_folder, "dog", *wrong, "-o", out)
        assert ended.status == 2
        assert "error: " in ended.err
        assert "Traceback" not in ended.err
        assert not out.exists()
    assert command("generate", tiny_folder, "dog", "-o", out).status == 0


def test_a_folder_without_a_image_is_claimed_anew(command, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "images.json").write_text('{"prompts": ["fox"], "each": 3}')
    assert command("generate", tiny_folder, "dog", "-o", out).status == 0
    assert "dog" in (out / "images.json").read_text()


def test_more_images_of_one_prompt_go_into_the_same_folder(command, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("generate", tiny_folder, "dog", "-n", 2, "-o", out).status == 0
    made = (out / "0000.png").stat().st_mtime_ns
    assert command("generate", tiny_folder, "dog", "-n", 3, "-o", out).status == 0
    assert (out / "0000.png").stat().st_mtime_ns == made
    assert command("generate", tiny_folder, "dog", "-n", 3, "-o", tmp_path / "at-once").status == 0
    np.testing.assert_array_equal(pixels(out / "0002.png"), pixels(tmp_path / "at-once" / "0002.png"))
    ended = command("generate", tiny_folder, "dog", "fox", "-n", 3, "-o", out)
    assert "generated with prompts dog, not dog, fox; choose another folder" in ended.err
    ended = command("generate", tiny_folder, "dog", "-n", 2, "-o", out)
    assert "generated with each 3, not 2; choose another folder" in ended.err


def test_a_prompt_too_long_for_the_policy_is_named_before_anything_is_drawn(command, tmp_path: Path) -> None:
    long = "a big red apple with a green leaf beside a yellow banana and a blue car, noto style"
    ended = command("generate", "stickers", "red apple", long, "--policy", "stickers-20", "-o", tmp_path / "out")
    assert ended.status == 2
    assert f"tokens ('{long}') takes" in " ".join(ended.err.split())
    assert not (tmp_path / "out").exists()
    assert "cache:" not in ended.out


def test_prompts_of_a_file_stand_beside_those_of_the_line(command, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("fox\nowl\n")
    out = tmp_path / "out"
    assert command("generate", tiny_folder, "dog", "--prompts", tmp_path / "p.txt", "-o", out).status == 0
    assert len(list(out.glob("*.png"))) == 3
    ended = command("generate", tiny_folder, "dog", "--prompts", tmp_path / "none.txt", "-o", tmp_path / "b")
    assert ended.status == 2


def test_damaged_files_of_a_folder_are_named(command, tiny_folder: Path, policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("generate", tiny_folder, "dog", "--policy", policy, "--compare", "-o", out)
    assert command(*asked).status == 0
    (out / "full" / "0000.png").write_bytes(b"")
    ended = command(*asked)
    assert f"{out / 'full' / '0000.png'}: not a readable image" in ended.err
    (out / "full" / "0000.png").unlink()
    assert command(*asked).status == 0
    facts = json.loads((out / "images.json").read_text())
    (out / "images.json").write_text(json.dumps({**facts, "each": None}))
    assert "generated with each none, not 1" in command(*asked).err
    (out / "images.json").write_text("[]")
    assert "images.json: no table of names and values" in command(*asked).err


@pytest.mark.parametrize("verb", ["generate", "trace", "evaluate"])
def test_unknown_words_are_named_once_before_anything_is_drawn(command, tiny_folder: Path, tmp_path: Path, verb: str) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("red dinosaur\ndog\nblue car\nred unicorn\ndinosaur\n")
    out = tmp_path / "out"
    more = {"evaluate": ["--seeds", "1", "--no-floor"]}.get(verb, [])
    ended = command(verb, tiny_folder, "--prompts", prompts, "--out", out, *more)
    assert ended.status == 0
    assert ended.err.count("dinosaur") == 1
    assert "does not know these words" in ended.err
    assert "dinosaur, unicorn" in ended.err


@pytest.mark.parametrize("theirs", ["sheet.png", "images.parquet", "full/0000.png", "policy/notes.txt", "0003.png", "tokens/a"])
def test_a_folder_with_files_of_such_names_is_refused(command, tiny_folder: Path, tmp_path: Path, theirs: str) -> None:
    out = tmp_path / "out"
    (out / theirs).parent.mkdir(parents=True)
    (out / theirs).write_text("years of work")
    ended = command("generate", tiny_folder, "dog", "-o", out)
    assert ended.status == 2
    assert theirs.split("/")[0] in ended.err
    assert [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()] == [theirs]
    assert (out / theirs).read_text() == "years of work"


def test_rows_at_once_with_and_without_a_policy(command, tiny_folder: Path, policy: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_folder))
    ended = command("generate", tiny_folder, "dog", "--lead", 2, "--policy", policy, "-o", tmp_path / "small")
    assert ended.status == 0, ended.err
    assert "Rows follow each other by 2 columns: 9 steps in place of 15." in " ".join(ended.out.split())
    assert "by decoder transformers" in ended.out
    tokens = generate(model, ["dog"], policy=load_policy(policy).replace(lead=2)).tokens
    np.testing.assert_array_equal(pixels(tmp_path / "small" / "0000.png"), model.to_images(tokens)[0].numpy())
    ended = command("generate", tiny_folder, "dog", "--lead", 2, "--compare", "-o", tmp_path / "full")
    assert ended.status == 0, ended.err
    assert (tmp_path / "full" / "sheet.png").is_file()
    whole = Policy.uniform(model.shape, window=15, stride=1, prefix=model.max_prefix, lead=2)
    tokens = generate(model, ["dog"], policy=whole).tokens
    np.testing.assert_array_equal(pixels(tmp_path / "full" / "policy" / "0000.png"), model.to_images(tokens)[0].numpy())


@pytest.mark.parametrize("lead", [0, 5])
def test_a_lead_outside_a_row_is_one_sentence(command, lead: int, tiny_folder: Path, tmp_path: Path) -> None:
    ended = command("generate", tiny_folder, "dog", "--lead", lead, "-o", tmp_path / "out")
    assert ended.status == 2
    assert f"lead {lead}: expected 1 to 4 columns, of which 4 generates row after row." in " ".join(ended.err.split())
    assert not (tmp_path / "out").exists()
