"""`--overwrite` on real folders: what headscope wrote is made anew, what is the user's own stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from headscope.errors import DataError
from headscope.overwriting import clear_run
from headscope.tracing import TraceDataset
from tests.cli.command import headscope

# Beside ours, inside our folders, with names like ours, and of programs that write beside what they read.
MINE = (
    "policies/keep-20 2.safetensors", "search/keep-30/presets/mine.safetensors", "trace/parts/20240101.parquet",
    "trace/parts/curves-old.safetensors", "search/keep-20 copy/trials.parquet",
    "thesis.txt", "drafts/a.txt", "search/thesis.txt", "search/mine/trials.parquet", "search/keep-20/notes.md",
    "policies/keep-20.md", "policies/best.safetensors", "images/full/mine.png", "images/holiday.png", "figures/paper.pdf",
    "methods.csv.bak", "trace/parts/read-me.txt", "bench/notes.txt", "trace-shards/plan.txt", "RUN.JSON.txt", "heads.csv",
)  # fmt: skip
OURS = (
    "run.json", "prompts.json", "policy.safetensors", "methods.csv", ".heads.123.part.safetensors", ".report.9.part.html",
    "trace/parts/000001.parquet", "trace/parts/curves-0000.safetensors", "trace-shards/000/trace.json",
    "search/study.db", "search/study.db-wal", "search/study.journal.lock", "search/presets/h2o.safetensors",
    "search/keep-20/search.json", "search/small/presets.json", "search/small/study.db", "policies/keep-20.safetensors",
    "policies/small.safetensors", "policies/front-12.5.safetensors", "images/searched/000.png", "images/sheet.png",
    "figures/map-entropy.svg", "figures/L1H0.png", "bench/unseen.json", "bench/keep-20/solver-0.db",
)  # fmt: skip


def filled(folder: Path, names: tuple[str, ...] = (*MINE, *OURS)) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "run.json").write_text(json.dumps({"model": {"name": "tiny"}}))
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_what_headscope_wrote_goes_and_what_is_the_users_stays(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    (run / "empty").mkdir()
    clear_run(run)
    assert files(run) == set(MINE)
    assert all((run / name).read_text() == name for name in MINE)
    assert (run / "empty").is_dir()
    assert not (run / "search" / "presets").exists()


@given(st.text("abcdefghij.-_ 019", min_size=1, max_size=12).filter(lambda name: name.strip(". ")))
@settings(max_examples=10)
def test_a_name_that_is_not_ours_stays_wherever_it_lies(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    run = tmp_path_factory.mktemp("run")
    places = tuple(
        f"{folder}{name}.mine" for folder in ("", "trace/", "search/", "search/presets/", "policies/", "images/full/")
    )
    clear_run(filled(run, (*places, *OURS)))
    assert files(run) == set(places)


def test_a_linked_run_folder_is_emptied_and_stays_a_link_and_links_inside_lead_nowhere(tmp_path: Path) -> None:
    target, elsewhere = filled(tmp_path / "target"), tmp_path / "elsewhere"
    filled(elsewhere)
    (target / "report.html").symlink_to(elsewhere / "thesis.txt")
    (target / "photos").symlink_to(elsewhere)
    (target / "bench" / "keep-30").symlink_to(elsewhere)
    (tmp_path / "run").symlink_to(target)
    clear_run(tmp_path / "run")
    assert (tmp_path / "run").is_symlink()
    assert files(target) == {*MINE, "photos"}
    assert files(elsewhere) == {*MINE, *OURS}


@pytest.mark.parametrize("place", [".", "..", "../..", "elsewhere"])
def test_the_working_folder_and_those_above_it_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    here = tmp_path / "a" / "b"
    for folder in (here, here.parent, tmp_path):
        filled(folder)
    (here / "elsewhere").symlink_to(here.parent)
    before = files(tmp_path)
    monkeypatch.chdir(here)
    with pytest.raises(DataError, match="working folder, which `overwrite` does not clear"):
        clear_run(Path(place))
    assert files(tmp_path) == before


def test_the_home_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(filled(tmp_path / "home")))
    with pytest.raises(DataError, match="is the home folder"):
        clear_run(tmp_path / "home")
    with pytest.raises(DataError, match="above the home folder"):
        clear_run(tmp_path)


def test_a_run_begins_anew_beside_what_was_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "p.txt", tmp_path / "run"
    prompts.write_text("red apple\ndog\nblue car\nred car\n")
    asked = ("trace", tiny_folder, "--out", out, "--prompts", prompts)
    assert headscope(capsys, monkeypatch, *asked).status == 0
    (out / "search").mkdir()
    kept = ("thesis.txt", "search/thesis.txt", "trace/thesis.txt")
    for name in kept:
        (out / name).write_text("years of work")
    ended = headscope(capsys, monkeypatch, *asked, "--overwrite", "--seed", 3)
    assert ended.status == 0, ended.err
    assert json.loads((out / "run.json").read_text())["seed"] == 3
    assert TraceDataset(out / "trace").meta["complete"]
    assert {(out / name).read_text() for name in kept} == {"years of work"}
