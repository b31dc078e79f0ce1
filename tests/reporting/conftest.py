"""Shared by the tests of a run's page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.reporting.run_folder import make_run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every file, made once; tests write into copies of it."""
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(whole, tmp_path / "run"))
