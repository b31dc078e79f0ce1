"""Run the `headscope` command inside the test's process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from headscope.cli import main


@dataclass(frozen=True)
class Ended:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str


def headscope(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Ended:
    """`headscope ARGUMENTS` -> how it ended; an exception that would be a traceback fails the test."""
    monkeypatch.setattr(sys, "argv", ["headscope", *(str(argument) for argument in arguments)])
    capsys.readouterr()
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    printed = capsys.readouterr()
    return Ended(status, printed.out, printed.err)


def in_a_shell(line: str, folder: Path, **environment: str) -> Ended:
    """Run a line of bash in `folder`, where `headscope` is the command; the last status of a pipe is that of its first part."""
    named = f'headscope() {{ "{sys.executable}" -c "from headscope.cli import main; main()" "$@"; }}'
    source = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        ["bash", "-c", f"{named}\n{line}\nexit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def left_by_an_overwrite(run: Path, beside: Path) -> list[str]:
    """What of a copy of the run folder `--overwrite` would leave."""
    from headscope.overwriting import clear_run

    copy = shutil.copytree(run, beside / "copy")
    clear_run(copy)
    return sorted(str(path.relative_to(copy)) for path in copy.rglob("*"))
