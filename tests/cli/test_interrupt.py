"""Ctrl-C in the middle of a run, as a shell sends it: a real process and a real signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

# A shell's background jobs begin with SIGINT ignored, and the tests may be run in one.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from headscope.cli import main; main()"


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
