"""`headscope sensitivity`, `figures` and `heads --explain` on a run of a tiny model."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from headscope.pipeline import begin_run
from headscope.pipeline.steps import heads_step, trace_step
from headscope.tuning import PromptConfig, RunConfig
from tests.cli.command import headscope, left_by_an_overwrite

PROMPTS = "red apple\ndog\nblue car\nred car\napple\nblue dog\n"


@pytest.fixture(scope="module")
def traced(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "prompts.txt").write_text(PROMPTS, encoding="utf-8")
    prompts = PromptConfig(file=str(folder / "prompts.txt"), calibration=3, unseen=3)
    run = begin_run(RunConfig(model=str(tiny_folder), prompts=prompts, guidance=2.5), folder / "run", limited=False)
    trace_step(run)
    heads_step(run)
    return run.folder.path


def test_sensitivity_measures_every_head_at_every_budget_and_goes_on(
    traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = headscope(capsys, monkeypatch, "sensitivity", traced, "--keep", "60%", "--images", 2)
    assert ended.status == 0
    assert "At 60%:" in ended.out
    first = pd.read_parquet(traced / "sensitivity.parquet")
    assert len(first) == 4 * 3  # heads, choices
    ended = headscope(capsys, monkeypatch, "sensitivity", traced, "--keep", "60%,80%", "--images", 2)
    table = pd.read_csv(traced / "ablation.csv")
    assert table.groupby("keep").size().to_dict() == {"60%": 4, "80%": 4}
    again = pd.read_parquet(traced / "sensitivity.parquet")
    pd.testing.assert_frame_equal(again.head(len(first)), first)  # what stood there was not measured again
    assert (traced / "figures" / "ablation.png").stat().st_size > 5000
    other = headscope(capsys, monkeypatch, "sensitivity", traced, "--keep", "60%", "--images", 3)
    assert other.status == 2
    assert "sensitivity.parquet" in other.err


def test_figures_are_written_for_every_kind(
    traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = headscope(
        capsys, monkeypatch, "figures", traced, "--out", tmp_path, "--statistic", "entropy", "--heads", "L0H1,L1H0"
    )
    assert ended.status == 0
    found = sorted(path.stem for path in tmp_path.iterdir())
    assert found == ["decay", "dendrogram", "footprints", "layers", "map-entropy", "pairs", "streams"]
    names = ("map-entropy", "footprints", "decay", "layers", "pairs", "dendrogram", "streams")
    assert ended.out.split() == [str(tmp_path / f"{name}.png") for name in names]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--statistic", "entropie"), "statistic entropie: not in this trace"),
        (("--heads", "L9H0"), "the model has layers L0 to L1"),
        (("--format", "gif"), "format gif: unknown; known are png, svg, pdf"),
    ],
)
def test_figures_that_cannot_be_drawn_are_refused_before_any_is(
    traced: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple,
    said: str,
) -> None:
    ended = headscope(capsys, monkeypatch, "figures", traced, "--out", tmp_path, *arguments)
    assert ended.status == 2
    assert said in ended.err
    assert not list(tmp_path.iterdir())


def test_a_head_is_explained_in_words_and_drawn(
    traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = (traced / "heads.safetensors").read_bytes()
    ended = headscope(capsys, monkeypatch, "heads", traced, "--explain", "L1H0")
    assert ended.status == 0
    assert ended.out.startswith("L1H0 is s")
    assert (traced / "figures" / "L1H0.png").stat().st_size > 5000
    assert headscope(capsys, monkeypatch, "figures", traced).status == 0
    assert left_by_an_overwrite(traced, tmp_path) == []
    assert (traced / "heads.safetensors").read_bytes() == before


def test_the_commands_say_which_step_is_missing(
    tiny_folder: Path, traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts = traced.parent / "prompts.txt"
    headscope(capsys, monkeypatch, "trace", tiny_folder, "--out", tmp_path / "r", "--prompts", prompts, "--calibration", 2)
    for command in (("figures", tmp_path / "r"), ("sensitivity", tmp_path / "r")):
        ended = headscope(capsys, monkeypatch, *command)
        assert ended.status == 2
        assert "headscope heads" in ended.err


def test_a_choice_of_heads_is_not_classified_and_the_report_still_stands(
    tiny_folder: Path, traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompts = traced.parent / "prompts.txt"
    headscope(capsys, monkeypatch, "trace", tiny_folder, "--out", tmp_path / "r", "--prompts", prompts, "--layers", "1")
    ended = headscope(capsys, monkeypatch, "heads", tmp_path / "r")
    assert ended.status == 2
    assert "holds a choice of layers, and classes need all of them: trace again without --layers" in ended.err
    assert headscope(capsys, monkeypatch, "report", tmp_path / "r").status == 0


def test_a_cut_table_of_statistics_is_named(
    traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = shutil.copytree(traced, tmp_path / "run")
    (run / "trace" / "heads.parquet").write_bytes(b"PAR1")
    ended = headscope(capsys, monkeypatch, "figures", run)
    assert ended.status == 2
    assert "heads.parquet: not a table of a trace" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sensitivity", "--keep", " , "), "--keep: expected shares"),
        (("heads", "--against", "x"), "--against is what --stability compares with"),
        (("heads", "--method", "threshold", "--threshold", "5"), "threshold 5.0: expected a number from 0 to 1"),
        (("heads", "--explain", "L0H0", "--method", "guess"), "method guess: unknown"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    traced: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    ended = headscope(capsys, monkeypatch, arguments[0], traced, *arguments[1:])
    assert ended.status == 2
    assert said in " ".join(ended.err.split())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = headscope(capsys, monkeypatch, "--version")
    assert (ended.status, ended.out) == (0, f"headscope {version('headscope')}\n")
