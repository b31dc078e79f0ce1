"""Shared by the tests of a run's page."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tests.reporting.run_folder import make_run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every file, made once; tests write into copies of it."""
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not written as SVG, which takes most of the time of a page."""
    monkeypatch.setattr(
        "headscope.reporting.page.svg", lambda figure: f"<svg aria-label={quoteattr(figure.get_label())}></svg>"
    )


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(whole, tmp_path / "run"))
