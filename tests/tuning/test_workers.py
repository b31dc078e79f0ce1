"""Whose process is gone loses its trial, who lives keeps it, and who was taken for dead wrongly harms nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from headscope.errors import DataError, NumberError
from headscope.policy import Policy
from headscope.tuning.config import SearchConfig
from headscope.tuning.measure.measurement import ReplayResult
from headscope.tuning.propose.class_space import ClassSpace
from headscope.tuning.propose.samplers import RETRIES
from headscope.tuning.propose.strides import fitting_strides
from headscope.tuning.study import workers
from headscope.tuning.study.faults import StorageError
from headscope.tuning.study.phase import TrialBook
from headscope.tuning.study.quiet import quiet_optuna
from headscope.tuning.study.results import is_proposal
from headscope.tuning.study.storage import StudyStore, open_storage
from headscope.tuning.study.workers import ALIVE, ERROR, WORKER, Watch, lives, marked, worker_name
from tests.tuning.landscape import LIMIT, SCORES, SHAPE, Landscape

SPACE = ClassSpace(LIMIT, SCORES, fitting_strides(LIMIT))
STORAGES = ("study.db", "study.journal")
HOST, NUMBER, BEGAN, SPACE_OF_NUMBERS = worker_name().rsplit(":", 3)


def book(storage: Any, land: Any = None) -> TrialBook:
    kept = open_storage(storage) if isinstance(storage, (str, Path)) else storage
    store = StudyStore(kept, identity={"a": 1})
    return TrialBook(land or Landscape(), SHAPE, "classes", store, SearchConfig(sampler="random"), {})


def running(study: optuna.Study, worker: str | None, alive: float) -> int:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    if worker is not None:
        trial.set_user_attr(WORKER, worker)
        trial.set_user_attr(ALIVE, alive)
    return trial.number


class Interrupted(Landscape):
    """Something happens while a policy is measured."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self.happens = happens

    def measure(self, policy: Policy, watch: Any = None) -> ReplayResult:
        self.happens()
        return super().measure(policy, watch)


def test_a_process_is_seen_while_it_lives_and_missed_when_it_is_gone() -> None:
    process = subprocess.Popen(["sleep", "60"])
    name = f"{HOST}:{process.pid}:{workers._began(process.pid)}:{SPACE_OF_NUMBERS}"
    assert lives(name) is True
    process.kill()
    while workers._began(process.pid) != "":  # from now on a zombie
        time.sleep(0.01)
    assert lives(name) is False
    process.wait()
    assert lives(name) is False
    assert lives(f"{HOST}:{process.pid}:1:{SPACE_OF_NUMBERS}") is False


@pytest.mark.parametrize(
    "name",
    [
        f"{HOST}:{NUMBER}:{BEGAN}:{SPACE_OF_NUMBERS}9",  # another container of this machine, by the same host name
        f"{HOST}:1:1:other-kernel/1",
        f"{HOST}:{NUMBER}:{BEGAN}",
        f"{HOST}:x:{BEGAN}:{SPACE_OF_NUMBERS}",
        f"{HOST}:{NUMBER}:{BEGAN}:",
        "",
    ],
    ids=["another container", "another kernel", "an older worker", "no number", "no name of its numbers", "nothing"],
)
def test_a_process_that_is_numbered_elsewhere_is_not_seen(name: str) -> None:
    assert lives(name) is None


@pytest.mark.parametrize(("fault", "seen"), [(PermissionError, None), (ProcessLookupError, False)])
def test_a_process_that_proc_hides_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch, fault: type[OSError], seen: bool | None
) -> None:
    name = f"{HOST}:2147480000:1:{SPACE_OF_NUMBERS}"  # no such number in /proc

    def kill(number: int, signal: int) -> None:
        raise fault

    monkeypatch.setattr(os, "kill", kill)
    assert lives(name) is seen


@pytest.mark.parametrize("clock", [-7200.0, 0.0, 7200.0])
def test_a_worker_that_is_not_seen_is_dead_only_when_its_word_stays_the_same_while_we_look(
    monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    monkeypatch.setattr(workers, "SILENT", 0.2)
    study = optuna.create_study()
    number = running(study, "another-machine:7:1:kernel/1", time.time() + clock)
    trial = study.get_trials(deepcopy=False)[number]
    watch = Watch(study, alone=False)
    for beat in range(3):
        assert watch.reap() == 0
        study._storage.set_trial_user_attr(trial._trial_id, ALIVE, time.time() + clock + beat)
        time.sleep(0.15)
    assert watch.reap() == 0
    time.sleep(0.25)
    assert watch.reap() == 1
    assert watch.reap() == 0


def test_a_trial_that_nobody_has_marked_is_waited_for() -> None:
    study = optuna.create_study()
    running(study, None, 0.0)
    assert Watch(study, alone=True).reap() == 0
    assert Watch(study, alone=False).reap() == 0


def test_our_own_trial_is_ours_while_we_are_at_it_and_queued_again_afterwards() -> None:
    study = optuna.create_study()
    with quiet_optuna():
        trial = study.ask()
    watch = Watch(study, alone=True)
    with marked(trial):
        assert watch.reap() == 0
    assert watch.reap() == 1  # a search that ended with an error, and begins anew in the same process


@pytest.mark.parametrize(
    ("name", "ends"),
    [("study.db", "well"), ("study.journal", "well"), ("study.journal", "failed"), ("study.journal", "stopped")],
)
def test_who_was_taken_for_dead_harms_nothing(tmp_path: Path, name: str, ends: str) -> None:
    others = book(tmp_path / name)

    def taken_for_dead() -> None:
        number = others.study.get_trials(deepcopy=False)[-1].number
        others.study.tell(number, state=TrialState.FAIL)
        workers.again(others.study, others.study.trials[number])
        if ends == "failed":
            raise RuntimeError("out of memory")
        if ends == "stopped":
            raise KeyboardInterrupt

    late = book(tmp_path / name, Interrupted(taken_for_dead))
    if ends == "stopped":
        with pytest.raises(KeyboardInterrupt):
            late.propose(SPACE)
    else:
        assert late.propose(SPACE) is None
    states = [trial.state for trial in others.study.trials]
    assert states == [TrialState.FAIL, TrialState.WAITING]
    assert others.sampled == 0
    again = others.propose(SPACE)
    assert again is not None
    assert others.study.trials[1].params == others.study.trials[0].params
    assert others.study.trials[1].user_attrs[RETRIES] == 0
    assert [is_proposal(trial) for trial in others.study.trials] == [False, True]


def test_a_storage_that_fails_at_a_sign_of_life_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(workers, "BEAT", 0.01)
    refused = []

    def happens() -> None:
        with monkeypatch.context() as change:

            def refuse(self: Any, *arguments: Any) -> None:
                refused.append(arguments)
                raise OSError(28, "No space left on device")

            change.setattr("headscope.tuning.study.journal.JournalFile.append_logs", refuse)
            while len(refused) < 3:
                time.sleep(0.01)

    found = book(tmp_path / "study.journal", Interrupted(happens)).propose(SPACE)
    assert found is not None
    assert raised == []


@pytest.mark.parametrize("losses", [float("nan"), float("inf")])
def test_numbers_that_are_none_end_the_search_and_stand_in_the_trial(tmp_path: Path, losses: float) -> None:
    class Broken(Landscape):
        def measure(self, policy: Policy, watch: Any = None) -> ReplayResult:
            found = super().measure(policy)
            broken = ReplayResult(found.divergence * losses, found.agreement, found.surplus, found.geometry)
            for by_image in broken.kl_by_image.split(4):
                watch(by_image)
            return broken

    kept = book(tmp_path / "study.db", Broken())
    with pytest.raises(NumberError, match="not finite"):
        kept.propose(SPACE)
    (trial,) = kept.study.trials
    assert trial.state == TrialState.FAIL
    assert "not finite" in trial.user_attrs[ERROR]
    assert book(tmp_path / "study.db").table()["state"].tolist() == ["fail"]


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_breaks_while_a_policy_is_measured_is_no_failed_trial(tmp_path: Path, name: str) -> None:
    class Full(Landscape):
        def measure(self, policy: Policy, watch: Any = None) -> ReplayResult:
            raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        book(tmp_path / name, Full()).propose(SPACE)
    rest = book(tmp_path / name)
    assert rest.sampled == 0
    assert rest.propose(SPACE) is not None
    assert rest.study.trials[1].user_attrs[RETRIES] == 0


def full(storage: Any) -> None:
    """No page more than there are now."""

    def bounded(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(storage.engine, "connect", bounded)
    storage.engine.dispose()


def test_a_full_disk_in_the_middle_of_a_study_is_one_sentence_and_the_study_goes_on(tmp_path: Path) -> None:
    whole = book(tmp_path / "whole.db")
    for _ in range(6):
        whole.propose(SPACE)
    storage = open_storage(tmp_path / "study.db")
    begun = book(storage)
    begun.propose(SPACE)
    full(storage)
    with pytest.raises(DataError, match="database or disk is full") as caught:
        [begun.propose(SPACE) for _ in range(5)]
    assert str(tmp_path / "study.db") in str(caught.value)
    assert "\n" not in str(caught.value)
    rest = book(tmp_path / "study.db")  # in the same process, as in a notebook
    while not rest.settled(6):
        rest.propose(SPACE)
    columns = [name for name in whole.table() if name == "kl" or name.startswith("number_")]
    made = rest.table()[rest.table()["state"] == "complete"].reset_index(drop=True)
    pd.testing.assert_frame_equal(made[columns], whole.table()[columns])


@pytest.mark.parametrize("first_out", [0, 1])
def test_threads_that_search_at_once_leave_optuna_as_loud_as_it_was(first_out: int) -> None:
    before, filters = optuna.logging.get_verbosity(), list(warnings.filters)
    inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def be_quiet(number: int) -> None:
        with quiet_optuna():
            inside.wait()
            leave[number].wait()

    threads = [threading.Thread(target=be_quiet, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    leave[first_out].set()
    threads[first_out].join()
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    leave[1 - first_out].set()
    threads[1 - first_out].join()
    assert optuna.logging.get_verbosity() == before
    assert warnings.filters == filters
