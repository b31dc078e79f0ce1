"""Studies that are killed, continued and shared: nothing is lost but the measurement that was running."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest

from headscope.errors import DataError, HeadscopeError
from headscope.tuning import SearchResult
from headscope.tuning.samplers import RETRIES, Reseeded, turn_of
from headscope.tuning.storages import ALIVE, SILENT, WORKER, open_storage, reap, shared, shown, worker_name
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
    study = optuna.create_study(sampler=Reseeded("random", 0))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(WORKER, worker)
    trial.set_user_attr(ALIVE, alive)
    return study


@pytest.mark.parametrize(
    ("worker", "silence", "dead"),
    [
        (worker_name(), 1e6, False),  # this very process, however silent
        (worker_name().rsplit(":", 1)[0] + ":1", 0.0, True),  # its number, but another process had it
        ("another-machine:7:1", SILENT / 2, False),
        ("another-machine:7:1", SILENT * 2, True),
    ],
    ids=["this process", "its number used again", "elsewhere, heard of", "elsewhere, silent"],
)
def test_only_dead_processes_lose_their_trials(worker: str, silence: float, dead: bool) -> None:
    study = running(worker, time.time() - silence)
    before = study.trials[0].params
    assert reap(study) == int(dead)
    assert reap(study) == 0
    if dead:
        retry = study.ask()
        assert retry.suggest_float("x", 0, 1) == before["x"]
        assert study.trials[retry.number].user_attrs[RETRIES] == 0
        assert turn_of(study, study.trials[retry.number]) == 0
        following = study.ask()
        assert turn_of(study, study.trials[following.number]) == 1


def test_an_interrupted_interruption_keeps_its_turn() -> None:
    study = running("another-machine:7:1", 0.0)
    reap(study)
    second = study.ask()
    second.suggest_float("x", 0, 1)
    second.set_user_attr(WORKER, "another-machine:8:1")
    second.set_user_attr(ALIVE, 0.0)
    assert reap(study) == 1
    third = study.ask()
    assert study.trials[third.number].user_attrs[RETRIES] == 0


def test_no_two_turns_have_the_same_numbers() -> None:
    study = optuna.create_study(sampler=Reseeded("random", 5))
    drawn = [study.ask().suggest_float("x", 0, 1) for _ in range(8)]
    assert len(set(drawn)) == 8
    again = optuna.create_study(sampler=Reseeded("random", 5))
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
    with pytest.raises(DataError, match="--sampler cma-es: keeps its state as a pickle"):
        run(1, tmp_path / "study.journal", sampler="cma-es")


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="--sampler grid: unknown; expected one of tpe, gp, cma-es, nsga-ii, random"):
        run(1, land=Landscape(), sampler="grid")
