"""What a tired user types: one clear sentence, exit status 2, nothing lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.command import Ended, headscope


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


def refused(ended: Ended, says: str) -> None:
    assert ended.status == 2, ended
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.err
    assert says in lines[0], lines[0]
    assert "Traceback" not in ended.err


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("red apple\ndog\nblue car\nred car\n")
    return file


@pytest.fixture
def traced(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> Path:
    out = tmp_path / "run"
    assert command("trace", tiny_folder, "--out", out, "--prompts", prompts).status == 0
    return out


def test_an_unknown_model_lists_the_known_ones(command, tmp_path: Path) -> None:
    refused(
        command("run", "stickerz", "--out", tmp_path / "r"),
        "known models are stickers, stickers-scenes, stickers-classes, smollm2, deepseek-community/Janus-Pro-1B",
    )
    assert not (tmp_path / "r").exists()


def test_a_missing_prompt_file(command, tiny_folder: Path, tmp_path: Path) -> None:
    refused(command("trace", tiny_folder, "--out", tmp_path / "r", "--prompts", tmp_path / "no.txt"), "no such prompt file")


def test_an_empty_prompt_file(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> None:
    prompts.write_text("\n# only a remark\n\n")
    refused(command("run", tiny_folder, "--out", tmp_path / "r", "--prompts", prompts), "holds no prompt")


def test_a_prompt_that_is_too_long(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> None:
    prompts.write_text("dog\n" + "red apple " * 50 + "\n")
    refused(command("run", tiny_folder, "--out", tmp_path / "r", "--prompts", prompts), "102 tokens long, tiny")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--keep", "2%", "the smallest possible is"),
        ("--keep", "101%", "at most 100%"),
        ("--keep", "much", "expected a share such as 20%"),
        ("--memory", "1KiB", "the smallest possible is"),
        ("--memory", "3GiB", "more than the full cache"),
        ("--memory", "12 apples", "expected a size such as 12MiB"),
    ],
)
def test_impossible_limits(
    command, tiny_folder: Path, tmp_path: Path, prompts: Path, option: str, value: str, says: str
) -> None:
    refused(command("run", tiny_folder, "--out", tmp_path / "r", "--prompts", prompts, option, value), says)
    assert not (tmp_path / "r").exists()


def test_a_limit_given_twice(command, tiny_folder: Path, tmp_path: Path) -> None:
    ended = command("run", tiny_folder, "--out", tmp_path / "r", "--keep", "20%", "--memory", "1MiB")
    assert ended.status == 2
    assert "not both" in ended.err


def test_a_folder_that_is_no_run(command, tmp_path: Path) -> None:
    refused(command("heads", tmp_path), "no run.json here")
    refused(command("report", tmp_path), "run.json")


def test_a_step_before_its_time(command, traced: Path) -> None:
    refused(command("search", traced), "run `headscope heads` first")


def test_a_run_folder_of_another_model(command, traced: Path, prompts: Path) -> None:
    before = {path: path.read_bytes() for path in traced.rglob("*") if path.is_file()}
    refused(command("trace", "stickers", "--out", traced, "--prompts", prompts, "--resume"), "is a run of")
    assert before == {path: path.read_bytes() for path in traced.rglob("*") if path.is_file()}


def test_a_run_folder_that_is_taken(command, traced: Path, tiny_folder: Path, prompts: Path) -> None:
    refused(command("trace", tiny_folder, "--out", traced, "--prompts", prompts), "continue it with --resume")


def test_other_settings_than_the_run_was_begun_with(command, traced: Path, tiny_folder: Path, prompts: Path) -> None:
    ended = command("trace", tiny_folder, "--out", traced, "--prompts", prompts, "--resume", "--seed", 5)
    refused(ended, "was begun with seed 0, now it is 5")


def test_going_on_and_starting_anew_at_once(command, traced: Path, tiny_folder: Path, prompts: Path) -> None:
    asked = ("--out", traced, "--prompts", prompts, "--resume", "--overwrite")
    for ended in (command("trace", tiny_folder, *asked), command("run", tiny_folder, *asked)):
        assert ended.status == 2
        assert "not both" in ended.err
    assert (traced / "calibration.parquet").is_file()


def test_a_folder_that_holds_something_else(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    ended = command("run", tiny_folder, "--out", tmp_path / "mine", "--prompts", prompts, "--overwrite", "--keep", "50%")
    refused(ended, "exists and is no run folder")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_cut_policy_file(command, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(b"\x00" * 40)
    refused(command("policy", "show", file), "not a policy file")
    refused(command("generate", tiny_folder, "--policy", file, "--prompt", "dog", "--out", tmp_path / "o"), "not a policy file")
    refused(command("policy", "show", tmp_path / "none.safetensors"), "no such policy file")


def test_a_place_that_cannot_be_written(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused(command("trace", tiny_folder, "--out", tmp_path / "file", "--prompts", prompts), "no run folder")
    refused(command("trace", tiny_folder, "--out", tmp_path / "file" / "in", "--prompts", prompts), "cannot be written")
    if os.geteuid() != 0:  # root writes anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        refused(command("trace", tiny_folder, "--out", locked / "run", "--prompts", prompts), "cannot be written")


def test_a_full_disk_loses_nothing(
    command, traced: Path, tiny_folder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from headscope.heads import Heads

    def full(self: Heads, path: Path) -> Path:
        from headscope.storage import write_whole

        def write(target: Path) -> None:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

        return write_whole(path, write)

    before = {path.name for path in traced.rglob("*")}
    monkeypatch.setattr(Heads, "save", full)
    refused(command("heads", traced), "No space left on device")
    assert {path.name for path in traced.rglob("*")} == before


def test_a_run_whose_model_is_gone(command, tmp_path: Path, tiny_folder: Path, prompts: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(tiny_folder, moved)
    assert command("trace", moved, "--out", tmp_path / "r", "--prompts", prompts).status == 0
    shutil.rmtree(moved)
    refused(command("heads", tmp_path / "r"), f"begun with the model folder {moved}, which is not there")


def test_a_prompt_that_looks_like_an_option_is_told_how_to_be_one(command) -> None:
    ended = command("generate", "stickers-classes", "-1")
    assert (ended.status, "A prompt that begins with - goes behind `--`: -- -1..." in ended.err) == (2, True)
    refused(command("generate", "stickers-classes", "--out", "nowhere", "--", "-1"), "class -1: stickers-classes has classes")


def test_unknown_words_are_a_usage_error(command) -> None:
    assert command("frobnicate").status == 2
    assert command("run").status == 2
    assert command("run", "stickers", "--trials", "none").status == 2


@pytest.mark.parametrize("verb", ["trace", "heads", "search", "generate", "report", "models", "run", "demo"])
def test_help_shows_a_line_to_paste(command, verb: str) -> None:
    ended = command(verb, "--help")
    assert ended.status == 0
    assert f"Example: headscope {verb}" in " ".join(ended.out.split())
