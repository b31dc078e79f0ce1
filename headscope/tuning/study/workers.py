"""Workers: which process is at a running trial, and what becomes of the trials of those that are gone.

Whoever works on a study marks its running trials with its name and, now and then, with the time. A running trial whose
process is gone is found by the next one that looks, marked failed and queued again with the numbers that it had, so that
nothing but the unfinished measurement is lost. This needs no heartbeat of the storage, which a journal has not.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from headscope.errors import HeadscopeError, NumberError
from headscope.tuning.propose.samplers import RETRIES, first_number
from headscope.tuning.study.faults import StorageError
from headscope.tuning.study.lock import boot_id

WORKER, ALIVE = "worker", "alive"
# What a trial keeps: its result, or why it failed.
RESULT, ERROR = "result", "error"
# A worker says that it lives every BEAT seconds; one that can't be seen and was silent for SILENT is taken for dead.
BEAT, SILENT = 10.0, 60.0
# The trials that this process is at: (study, number).
_at_work: set[tuple[str, int]] = set()


def worker_name() -> str:
    """This process: machine, number, when it began, because numbers are used again, and what its number counts in."""
    return f"{socket.gethostname()}:{os.getpid()}:{_began(os.getpid()) or 'alive'}:{_numbered_in()}"


def lives(worker: str) -> bool | None:
    """Whether the process of that name lives; None where this one can't see it: on another machine, in another container."""
    parts = worker.rsplit(":", 3)
    if len(parts) != 4 or not parts[3] or parts[3] != _numbered_in() or not parts[1].isdecimal():
        return None
    began = _began(int(parts[1]))
    return None if began is None else began == parts[2]


class Watch:
    """Looks after the running trials of one study.

    A process that can be seen is gone when the system says so. Of others only their own word is known: clocks of two machines
    differ, so a worker is silent when its word stays the same for `SILENT` seconds while this process looks.

    Args:
        study: whose running trials.
        alone: the study is kept where one process works, so whoever was silent before this one began is gone.
    """

    def __init__(self, study: optuna.Study, *, alone: bool) -> None:
        self.study, self.alone = study, alone
        self._heard: dict[int, tuple[str, float]] = {}

    def reap(self) -> int:
        """Queue the trials of dead processes again, each once; how many."""
        found = 0
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._gone(trial) and told(self.study, trial.number, state=TrialState.FAIL):  # else another was faster
                again(self.study, trial)
                found += 1
        return found

    def _gone(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker == worker_name():
            return (self.study.study_name, trial.number) not in _at_work  # a search that ended on the way
        if isinstance(worker, str) and (seen := lives(worker)) is not None:
            return not seen
        word, now = repr((worker, trial.user_attrs.get(ALIVE))), time.monotonic()
        before, since = self._heard.setdefault(trial.number, (word, now))
        if before != word:
            self._heard[trial.number] = (word, now)
            return False
        return now - since > SILENT or (self.alone and _silent_before(trial))


def again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue an interrupted trial: the same numbers, and the turn of the first one that proposed them."""
    study.enqueue_trial(dict(trial.params), user_attrs={RETRIES: first_number(trial)})


def told(
    study: optuna.Study, trial: optuna.Trial | int, values: Sequence[float] | None = None, state: TrialState | None = None
) -> bool:
    """End a trial; whether that counts, because no other process ended it before.

    Args:
        study: of the trial.
        trial: the trial, or its number.
        values: what it lost, a number for each objective; None where it has no result.
        state: in which it ends; None leaves that to Optuna, by the values.
    """
    number = trial if isinstance(trial, int) else trial.number
    try:
        study.tell(trial, values, state)
    except UpdateFinishedTrialError:
        return False
    except ValueError:
        if study.get_trials(deepcopy=False)[number].state == TrialState.RUNNING:
            raise
        return False
    return True


@contextmanager
def marked(trial: optuna.Trial) -> Iterator[None]:
    """Mark `trial` as this process' own, and as alive while the block runs."""
    mine = (trial.study.study_name, trial.number)
    _at_work.add(mine)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with suppress(Exception):  # whoever keeps the result meets the same fault, and says it
                trial.set_user_attr(ALIVE, time.time())

    thread = threading.Thread(target=beat, daemon=True)
    try:
        trial.set_user_attr(WORKER, worker_name())
        trial.set_user_attr(ALIVE, time.time())
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    finally:
        _at_work.discard(mine)


Measured = tuple[dict[str, Any], Sequence[float] | None]


def carried_out(study: optuna.Study, trial: optuna.Trial, measure: Callable[[], Measured]) -> dict[str, Any] | None:
    """Measure, and keep in the trial what was found.

    Args:
        study: of the trial.
        trial: this process' own, still running.
        measure: returns what the trial keeps, and its losses, one for each objective; None for these where it was given up.

    Returns:
        What it keeps; None where it was given up or failed (kept so, with the reason), or where another process took this one
        for dead meanwhile, which has queued the trial again.

    Raises:
        NumberError: the model's numbers are none; the trial is kept as failed.
        StorageError: the storage can't be written; the trial is queued again when the study goes on.
        BaseException: what is no `Exception` of a measurement, KeyboardInterrupt say; the trial is queued again.
    """
    with suppress(UpdateFinishedTrialError), marked(trial):
        try:
            result, losses = measure()
        except (StorageError, UpdateFinishedTrialError):
            raise
        except (HeadscopeError, RuntimeError, ValueError) as error:
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}")
                told(study, trial, state=TrialState.FAIL)
            if isinstance(error, NumberError):  # of the model, so of every trial
                raise
            return None
        except BaseException:
            with suppress(StorageError, UpdateFinishedTrialError):
                if told(study, trial, state=TrialState.FAIL):
                    again(study, study.get_trials(deepcopy=False)[trial.number])
            raise
        trial.set_user_attr(RESULT, result)
        if losses is None:
            told(study, trial, state=TrialState.PRUNED)
        elif told(study, trial, losses):
            return result
    return None


def _silent_before(trial: FrozenTrial) -> bool:
    """By its clock and ours, which may be the same."""
    word = trial.user_attrs.get(ALIVE)
    if isinstance(word, (int, float)):
        return not abs(time.time() - word) < SILENT
    return trial.datetime_start is None or time.time() - trial.datetime_start.timestamp() > SILENT


@cache
def _numbered_in() -> str:
    """What this process' number means something in: a kernel and a namespace of it; "" where the system does not say."""
    if sys.platform != "linux":
        return f"{sys.platform} {socket.gethostname()}"
    try:
        return f"{boot_id()}/{os.stat('/proc/self/ns/pid').st_ino}" if boot_id() else ""
    except OSError:
        return ""


def _began(number: int) -> str | None:
    """When a process began, in the kernel's ticks; "" if there is none, None where one may be that is not shown.

    Where the kernel tells no times: "alive".
    """
    try:
        fields = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()  # a zombie is dead
    except (OSError, IndexError):
        return _answers(number)


def _answers(number: int) -> str | None:
    """As `_began`, by a signal that does nothing: /proc may hide the processes of other users (hidepid)."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return ""
    except (OSError, OverflowError):
        return None
    return None if sys.platform == "linux" else "alive"
