"""`headscope bench` on a tiny model: each table has its columns, and what it says is what the search would find."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.command import headscope


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


@pytest.fixture
def run(command, tiny_folder: Path, tmp_path: Path) -> Path:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\ndog\nblue car\nred car\nblue dog\nred dog\n")
    assert command("trace", tiny_folder, "--out", tmp_path / "run", "--prompts", prompts).status == 0
    assert command("heads", tmp_path / "run").status == 0
    return tmp_path / "run"


def test_kinds_of_tables(command, run: Path, tmp_path: Path) -> None:
    ended = command("bench", "tables", run, "--keep", "80,60%", "-o", tmp_path / "tables.csv")
    assert ended.status == 0, ended.err
    table = pd.read_csv(tmp_path / "tables.csv")
    assert list(table["table"]) == ["heads", "groups", "coverage"] * 2
    assert (table["replay_kl"] >= 0).all()
    assert table["cells"].iloc[0] > table["cells"].iloc[1] > table["cells"].iloc[2] == 0


def test_samplers_at_equal_trials(command, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "samplers.csv"
    asked = ("bench", "samplers", run, "--keep", "60%", "--sampler", "tpe", "--sampler", "random", "--trials", 4, "--seeds", 1)
    ended = command(*asked, "-o", out)
    assert ended.status == 0, ended.err
    table = pd.read_csv(out)
    assert table.groupby(["method", "sampler", "seed"])["trial"].max().eq(4).all()
    assert len(table.groupby(["method", "sampler", "seed"])) == 4
    assert table.groupby(["method", "sampler", "seed"])["best_kl"].apply(lambda kl: kl.is_monotonic_decreasing).all()
    assert out.with_suffix(".png").stat().st_size > 10_000
    first = out.read_bytes()
    assert command(*asked, "-o", out).status == 0  # studies are kept: nothing is proposed again
    assert out.read_bytes() == first


def test_the_search_against_every_preset(command, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "search.csv"
    ended = command("bench", "search", run, "--keep", "60%", "--trials", 4, "--seeds", 1, "-o", out)
    assert ended.status == 0, ended.err
    table = pd.read_csv(out).set_index("method")
    known = ["streaming", "h2o", "linear", "pyramid", "ssd", "solver"]
    assert {*known, "full", "swapped", "optuna", "searched"} <= set(table.index)
    presets = table.loc[known, "calibration_kl"]
    assert table.loc["searched", "calibration_kl"] <= presets.min()
    assert table.loc["full", "replay_kl"] == pytest.approx(0, abs=1e-5)
