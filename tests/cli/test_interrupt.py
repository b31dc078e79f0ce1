"""Ctrl-C in the middle of a run, as a shell sends it: a real process and a real signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headscope.cli.app import WITH_RESUME, _after_a_stop
from tests.cli.command import headscope

# A shell's background jobs begin with SIGINT ignored, and the tests may be run in one.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from headscope.cli import main; main()"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


def test_a_stopped_run_says_how_to_go_on_and_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", LISTEN, "run", "stickers", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "prompts.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    assert (out / "run.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "stickers", "--keep", "20%"], "the same command with --resume goes on"),
        (["trace", "stickers"], "the same command with --resume goes on"),
        (["generate", "stickers", "a dog"], "the same command goes on with what is there"),
        (["evaluate", "stickers", "--out", "e"], "the same command goes on with what is there"),
        (["run", "stickers", "--overwrite"], "the same command with --resume in place of --overwrite goes on"),
        (["bench", "decode", "-o", "d.csv"], "the same command starts from the beginning"),
        (["heads", "runs/a"], "the same command starts from the beginning"),
        (["merge", "a", "b", "--out", "c"], "the folder of --out may hold a part of the trace: remove it"),
        ([], "the same command starts from the beginning"),
    ],
)
def test_what_is_said_after_a_stop_holds_for_the_command(words: list[str], said: str) -> None:
    assert _after_a_stop(words).startswith(said)


def test_commands_told_to_resume_have_that_option(command) -> None:
    for name in WITH_RESUME:
        assert "--resume" in command(name, "--help").out
