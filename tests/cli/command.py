"""Run the `headscope` command inside the test's process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

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
