"""A journal outlives its writers: half a line, a lock that was left, a full disk, a changed working folder."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from headscope.errors import DataError
from headscope.tuning.study import journal
from headscope.tuning.study.journal import JournalStudies
from headscope.tuning.study.lock import JournalLock, boot_id
from headscope.tuning.study.storage import open_storage


def holder(path: str) -> multiprocessing.process.BaseProcess:
    """A process that holds a lock until it is killed; one that begins at once, as it imports nothing."""
    ours, theirs = multiprocessing.Pipe()

    def hold() -> None:
        JournalLock(path).acquire()
        theirs.send("held")
        time.sleep(600)

    process = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    process.start()
    ours.recv()
    return process


def study(path: Path, trials: int = 0) -> optuna.Study:
    found = optuna.create_study(storage=open_storage(path), study_name="s", load_if_exists=True)
    for number in range(trials):
        trial = found.ask()
        trial.suggest_float("x", 0, 1)
        found.tell(trial, float(number))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    study(tmp_path / "study.journal", 3)
    return tmp_path / "study.journal"


@pytest.mark.parametrize(
    "cut", [b'{"op_code": 4, "worker_id": "abc-1", "trial_i', b"{", b'{"op_code":5,"wor\0\0\0\0', b"\0" * 4096]
)
def test_half_a_line_is_dropped_when_a_journal_is_opened(path: Path, cut: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + cut)
    storage = open_storage(path)
    assert path.read_bytes() == whole
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 3
    assert len(study(path, 2).trials) == len(study(path).trials) == 5


def test_a_last_line_that_lacks_only_its_end_is_kept(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(study(path).trials) == 3
    assert path.read_bytes().startswith(whole)


def test_half_a_line_of_another_process_is_dropped_while_we_go_on(path: Path) -> None:
    ours = study(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"gone-1","stud')
    assert len(ours.trials) == 3  # it is being written, for all we know
    ours.ask()
    assert len(ours.trials) == len(study(path).trials) == 4
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"op_code":4,"worker_id":"a-1","stu{"op_code":4}', "line 3 is not JSON"),
        (b"\x80\x81", "line 3 is not JSON"),
        (b"null", "line 3 is none that a study writes"),
        (b'{"op_code":77,"worker_id":"a-1"}', "line 3 is none that a study writes"),
        (b'{"op_code":4,"worker_id":"a-1","study_id":0,"datetime_start":1}', "line 3 is none that a study writes"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_changed(path: Path, line: bytes, says: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, b"\n", *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(DataError, match=says) as caught:
        study(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_damaged_line_is_named_again_and_again(path: Path) -> None:
    ours = study(path)
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"a-1"}\n' * 2)
    for _ in range(2):
        with pytest.raises(DataError, match="none that a study writes"):
            assert ours.trials


def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path: Path) -> None:
    for text in ("my diary", "my diary\nof two lines", '{"my": "settings"}'):
        file = tmp_path / "mine.journal"
        file.write_text(text)
        with pytest.raises(DataError, match=r"mine\.journal"):
            study(file)
        assert file.read_text() == text


def test_a_journal_is_found_after_the_working_folder_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = study(Path("study.journal"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    ours.ask()
    assert len(ours.trials) == 1
    assert sorted(os.listdir(tmp_path)) == ["other", "study.journal"]


def test_one_journal_by_two_names_has_one_lock(path: Path) -> None:
    link = path.with_name("link.journal")
    link.symlink_to(path)
    lock = JournalLock(f"{path}.lock")
    lock.acquire()
    done = threading.Thread(target=lambda: study(link, 1), daemon=True)
    done.start()
    done.join(0.3)
    assert done.is_alive()
    lock.release()
    done.join(10)
    assert len(study(path).trials) == 4


@pytest.mark.skipif(not boot_id(), reason="the kernel does not say which run it is")
def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_that_of_a_living_one_is_not(path: Path) -> None:
    lock = JournalLock(f"{path}.lock")
    other = holder(lock.path)
    waiting = threading.Thread(target=lock.acquire, daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    other.kill()
    other.join()
    waiting.join(5)
    assert not waiting.is_alive()
    assert lock.holds()
    lock.release()
    assert not Path(lock.path).exists()


@pytest.mark.parametrize("target", ["study.journal", "nowhere/study.journal", None])
def test_a_lock_that_says_nothing_is_waited_for_and_then_taken_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    left = path.with_name("study.journal.lock")
    left.write_bytes(b"") if target is None else left.symlink_to(target)  # as Optuna makes them, one with a relative path
    monkeypatch.setattr("headscope.tuning.study.lock.GRACE", 0.4)
    monkeypatch.setattr("headscope.tuning.study.lock.PATIENCE", 0.1)
    began = time.monotonic()
    assert len(study(path, 1).trials) == 4
    assert 0.4 <= time.monotonic() - began < 5
    assert capsys.readouterr().err.count(str(left)) == 1
    assert not left.is_symlink()
    assert not left.exists()


def test_a_lock_that_was_taken_from_us_is_not_given_back(path: Path) -> None:
    ours, theirs = JournalLock(f"{path}.lock"), JournalLock(f"{path}.lock")
    ours.acquire()
    os.unlink(ours.path)
    theirs.acquire()
    ours.release()
    assert theirs.holds()
    theirs.release()


def test_processes_that_append_at_once_lose_no_line(tmp_path: Path) -> None:
    study(tmp_path / "study.journal")
    storages = [JournalStudies(str(tmp_path / "study.journal")) for _ in range(4)]

    def append(storage: JournalStudies) -> None:
        for number in range(25):
            storage.set_study_user_attr(0, f"{id(storage)} {number}", number)

    threads = [threading.Thread(target=append, args=(storage,)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(study(tmp_path / "study.journal").user_attrs) == 100


@pytest.mark.parametrize("room", [0, 1, 17])
def test_a_full_disk_leaves_whole_lines_and_the_study_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    ours, before = study(path), path.read_bytes()

    def full(file: Any, data: bytes) -> None:
        file.write(data[:room])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as change:
        change.setattr(journal, "_write", full)
        with pytest.raises(DataError, match="No space left on device") as caught:
            ours.ask()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.lock*"))
    ours.ask()
    assert len(study(path).trials) == 4
