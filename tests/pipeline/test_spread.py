"""Work spread over processes: what dies is begun again, and a stop is a stop."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from headscope.errors import DataError, HeadscopeError
from headscope.pipeline import workers as crew
from headscope.pipeline.workers import Workers, map_tasks
from tests.pipeline.jobs import dies, dies_once, hears_a_stop, refuses, slow

TWO = Workers(2)


def gone() -> bool:
    """Whether all workers end within some seconds."""
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def calls(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir() if "-" in path.name)


def test_what_a_dead_worker_was_at_is_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    assert map_tasks(dies_once, [(str(tmp_path), n) for n in range(4)], TWO, lambda done, total: told.append(done)) == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert told == [1, 2, 3, 4]
    assert "begun again" in capsys.readouterr().err
    assert set(calls(tmp_path)) == {0, 1, 2, 3}


def test_workers_that_die_again_and_again_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "RESTARTS", 1)
    with pytest.raises(HeadscopeError, match="Workers ended early 2 times, for want of memory perhaps; try fewer `workers`"):
        map_tasks(dies, [(str(tmp_path), 0)], TWO, lambda done, total: None)


def test_an_error_of_a_job_ends_the_rest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="number 0 is not to be had"):
        map_tasks(refuses, [(str(tmp_path), 0)], TWO, lambda done, total: None)
    assert gone()


def test_a_stop_begins_nothing_that_waits_and_leaves_no_process(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_tasks(slow, [(str(tmp_path), n) for n in range(40)], TWO, stop)
    assert gone()
    assert len(calls(tmp_path)) < 10


def test_a_stop_from_the_keyboard_is_the_leaders_alone() -> None:
    assert map_tasks(hears_a_stop, [()], TWO, lambda done, total: None) == ["no"]
