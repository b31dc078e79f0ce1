"""Run the scripts of reports/ inside the test's process, or take functions out of them."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.cli.command import Ended

REPORTS = Path(__file__).resolve().parents[2] / "reports"


def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> Ended:
    """`python reports/NAME ARGUMENTS` -> how it ended; an exception that would be a traceback fails the test."""
    path = REPORTS / name
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    capsys.readouterr()
    status = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        status = int(ended.code or 0)
    printed = capsys.readouterr()
    return Ended(status, printed.out, printed.err)


def functions(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """The module of a script, `stickers/stickereval.py`, without running it."""
    path = REPORTS / name
    monkeypatch.syspath_prepend(str(path.parent))
    return importlib.import_module(path.stem)
