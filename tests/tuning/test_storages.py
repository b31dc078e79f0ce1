"""Studies that are killed, continued and shared: nothing is lost but the measurement that was running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pandas as pd
import pytest
from hypothesis import example, given, settings, strategies as st

from headscope.errors import DataError, HeadscopeError
from headscope.tuning import SearchResult
from headscope.tuning.propose.samplers import RETRIES, ReseededSampler, turn_of
from headscope.tuning.study.storage import open_storage, shared, shown
from headscope.tuning.study.workers import ALIVE, SILENT, WORKER, Watch, worker_name
from tests.tuning.landscape import Landscape, run

INCUMBENTS = 14  # or a few less: measured before the first proposal


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.tuning.landscape", *map(str, arguments)], stderr=subprocess.DEVNULL)


def proposals(result: SearchResult) -> pd.DataFrame:
    """What was proposed and measured, in order, without the interrupted ones."""
    table = result.trials
    numbers = [name for name in table.columns if name.startswith("number_")]
    done = table[table["state"].isin(["complete", "pruned"])]
    return done[["phase", "label", "kl", *numbers]].reset_index(drop=True)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga-ii"])
def test_a_study_killed_at_any_moment_ends_as_one_that_was_not(tmp_path: Path, sampler: str) -> None:
    whole, untouched = run(12, tmp_path / "whole.db", sampler=sampler)
    kills = (INCUMBENTS + 2, 4) if sampler == "tpe" else (4,)
    begun = start(tmp_path / "killed.db", 12, sampler, kills[0] if sampler == "tpe" else INCUMBENTS + 5)
    assert begun.wait() == -9
    for killed_at in kills[1:]:
        assert start(tmp_path / "killed.db", 12, sampler, killed_at).wait() == -9
    rest, land = run(12, tmp_path / "killed.db", sampler=sampler)
    assert 0 < len(land.measured) < len(untouched.measured)
    assert rest.policy.same_as(whole.policy)
    pd.testing.assert_frame_equal(proposals(rest), proposals(whole))
    assert (rest.trials["state"] == "fail").any()


def test_processes_share_a_journal_and_a_dead_one_costs_its_trial(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    run(0, journal)  # the incumbents
    before = journal.stat().st_size
    doomed = start(journal, 24, "tpe", 6)
    while journal.stat().st_size == before and doomed.poll() is None:  # or the other might leave nothing for it
        time.sleep(0.02)
    other = start(journal, 24, "tpe")
    assert doomed.wait() == -9
    assert other.wait() == 0
    result, land = run(24, journal)
    assert land.measured == []  # the two made them all
    made = result.trials[result.trials["label"].fillna("").str.endswith("trial")]
    assert len(made[made["state"].isin(["complete", "pruned"])]) >= 24
    lost = result.trials[result.trials["state"] == "fail"]
    assert len(lost) == 1
    numbers = [name for name in lost.columns if name.startswith("number_") and lost[name].notna().all()]
    again = made[(made["phase"] == lost["phase"].iloc[0]) & (made[numbers] == lost[numbers].iloc[0]).all(axis=1)]
    assert len(again) >= 1


def running(worker: str, alive: float) -> optuna.Study:
    study = optuna.create_study(sampler=ReseededSampler("random", 0))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(WORKER, worker)
    trial.set_user_attr(ALIVE, alive)
    return study


def renumbered(worker: str, began: str) -> str:
    """The same process number of the same machine, but another beginning."""
    host, number, _, space = worker.rsplit(":", 3)
    return ":".join((host, number, began, space))


@pytest.mark.parametrize(
    ("worker", "silence", "dead"),
    [
        (f"{worker_name()} as another machine calls it", SILENT / 2, False),
        (renumbered(worker_name(), "1"), 0.0, True),  # its number, but another process had it
        ("another-machine:7:1", SILENT / 2, False),
        ("another-machine:7:1", SILENT * 2, True),
        ("another-machine:7:1:kernel/1", SILENT * 2, True),
    ],
    ids=["unseen", "its number used again", "elsewhere, heard of", "elsewhere, silent, as named before", "elsewhere, silent"],
)
def test_only_dead_processes_lose_their_trials(worker: str, silence: float, dead: bool) -> None:
    study = running(worker, time.time() - silence)
    before = study.trials[0].params
    watch = Watch(study, alone=True)
    assert watch.reap() == int(dead)
    assert watch.reap() == 0
    if dead:
        retry = study.ask()
        assert retry.suggest_float("x", 0, 1) == before["x"]
        assert study.trials[retry.number].user_attrs[RETRIES] == 0
        assert turn_of(study, study.trials[retry.number]) == 0
        following = study.ask()
        assert turn_of(study, study.trials[following.number]) == 1


def test_an_interrupted_interruption_keeps_its_turn() -> None:
    study = running("another-machine:7:1", 0.0)
    Watch(study, alone=True).reap()
    second = study.ask()
    second.suggest_float("x", 0, 1)
    second.set_user_attr(WORKER, "another-machine:8:1")
    second.set_user_attr(ALIVE, 0.0)
    assert Watch(study, alone=True).reap() == 1
    third = study.ask()
    assert study.trials[third.number].user_attrs[RETRIES] == 0


def test_no_two_turns_have_the_same_numbers() -> None:
    study = optuna.create_study(sampler=ReseededSampler("random", 5))
    drawn = [study.ask().suggest_float("x", 0, 1) for _ in range(8)]
    assert len(set(drawn)) == 8
    again = optuna.create_study(sampler=ReseededSampler("random", 5))
    assert [again.ask().suggest_float("x", 0, 1) for _ in range(8)] == drawn


def test_where_a_study_is_kept() -> None:
    assert not shared("study.db")
    assert shared("study.journal")
    assert shared("postgresql://me@host/studies")
    assert shown("postgresql://me:secret@host/studies") == "postgresql://me@host/studies"


def test_a_server_that_does_not_answer_is_said_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(DataError, match="no study can be kept there") as caught:
        open_storage("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_an_unknown_database_is_refused() -> None:
    with pytest.raises(DataError, match="nosuch://host/name"):
        open_storage("nosuch://host/name")


def test_no_pickle_comes_from_a_storage_that_others_write_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sampler cma-es: keeps its state as a pickle"):
        run(1, tmp_path / "study.journal", sampler="cma-es")


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="sampler: grid: unknown; expected one of tpe, gp, cma-es, nsga-ii, random"):
        run(1, land=Landscape(), sampler="grid")


# What URLs, templates, shells, glob patterns and configuration files take for something else.
names = st.text(st.sampled_from("a ?%#{}[]'\"&=+;:@$*~\\|<>\u00e9\u2028\n.-"), min_size=1, max_size=12).filter(
    lambda name: name.strip(".") != ""
)


@example(["a?b"], "study")
@example(["keep%2Fit", "{SCHEMA_VERSION}"], "100%")
@example([":memory:"], ":memory:")
@example(["file:x?mode=memory"], "x")
@given(st.lists(names, min_size=1, max_size=2), names)
@settings(max_examples=6, deadline=None)
def test_a_study_lies_in_the_file_that_was_named_and_nowhere_else(folders: list[str], stem: str) -> None:
    with TemporaryDirectory() as root:
        for ending in (".db", ".journal"):
            path = Path(root, *folders, stem + ending)
            optuna.create_study(storage=open_storage(path), study_name=stem).ask()
            assert path.read_bytes().startswith(b"SQLite format 3" if ending == ".db" else b'{"op_code":')
            assert len(optuna.load_study(storage=open_storage(path), study_name=stem).trials) == 1
        files = {file for file in Path(root).rglob("*") if file.is_file()}
        assert {file.name.removesuffix("-wal").removesuffix("-shm") for file in files} == {f"{stem}.db", f"{stem}.journal"}
        assert {file.parent for file in files} == {path.parent}


def test_a_relative_name_counts_from_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage=open_storage("study.db"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]  # so that the file is opened again
    study.ask()
    assert os.listdir() == []


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("study.db", "study.journal"):
        with pytest.raises(DataError, match=r"file/study.*cannot be kept there"):
            open_storage(tmp_path / "file" / name)
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=name):
            open_storage(tmp_path / name)


def test_a_trial_that_holds_nonsense_is_named(tmp_path: Path) -> None:
    run(1, tmp_path / "study.journal")
    text = (tmp_path / "study.journal").read_text()
    assert '"given_up":false' in text
    (tmp_path / "study.journal").write_text(text.replace('"given_up":false', '"given_up":null', 1))
    with pytest.raises(DataError, match=r"trial 0 holds .*given_up.*None"):
        run(1, tmp_path / "study.journal")
