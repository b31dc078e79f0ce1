"""Journals: a study as a file of lines, one JSON object an event, which every process that works on it appends to.

Whoever appends holds a lock beside the file (lock.py). A writer that was killed, or whose disk was full, may leave half a
line, which was never read by anybody: the next one who holds the lock takes it away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from headscope.errors import HeadscopeError
from headscope.tuning.study.faults import StorageError, brief, one_sentence
from headscope.tuning.study.lock import JournalLock

_BEGINNING = b'{"op_code"'
_BLOCK = 1 << 16


class JournalFile(BaseJournalBackend):
    """Reads and appends whole lines.

    Args:
        path: absolute, so that the lock's name stays right when the working folder changes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = JournalLock(f"{path}.lock")
        self._starts = {0: 0}  # by line: the byte that it begins with
        self.last: tuple[int, Any] = (0, None)
        Path(path).touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The whole lines after the first `log_number_from`; what follows the last line's end is being written, or was cut.

        Raises:
            StorageError: a line is not JSON.
        """
        with open(self.path, "rb") as file:
            file.seek(self._starts[log_number_from])
            for number, line in enumerate(file, log_number_from):
                if not line.endswith(b"\n"):
                    return
                try:
                    log = json.loads(line)
                except (ValueError, RecursionError):
                    if (log := self._under_the_lock(number)) is not None:
                        yield log
                        yield from self.read_logs(number + 1)
                    return
                yield self._noted(number, line, log)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append events, all of them or none."""
        lines = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._locked(), open(self.path, "a+b", buffering=0) as file:
            end = self._mended(file)
            try:
                _write(file, lines)
                os.fsync(file.fileno())
            except OSError:
                if self._lock.holds():
                    with suppress(OSError):  # else the next one to append takes it away
                        file.truncate(end)
                raise

    def mend(self) -> None:
        """Take half a line away that a killed process left at the end."""
        with open(self.path, "rb") as file:
            if _ends_whole(file):
                return
        with self._locked(), open(self.path, "a+b", buffering=0) as file:
            self._mended(file)

    def _under_the_lock(self, number: int) -> dict[str, Any] | None:
        """A line that was no JSON: while another process takes half a line away, a reader may see parts of two."""
        with self._locked(), open(self.path, "rb") as file:
            file.seek(self._starts[number])
            line = file.readline()
        if not line.endswith(b"\n"):
            return None
        try:
            return self._noted(number, line, json.loads(line))
        except (ValueError, RecursionError) as error:
            raise StorageError(
                f"{self.path}: line {number + 1} is not JSON ({_fault(error)}); put a copy of the file back, or name another "
                "`storage`."
            ) from None

    def _noted(self, number: int, line: bytes, log: dict[str, Any]) -> dict[str, Any]:
        self._starts[number + 1] = self._starts[number] + len(line)
        self.last = number + 1, log
        return log

    def _mended(self, file: IO[bytes]) -> int:
        """How long the file is without half a line at its end; a whole one that lacks only its end is given one."""
        if _ends_whole(file):
            return file.seek(0, os.SEEK_END)
        line = _last_line(file)
        if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line) or not line.strip(b"\0")):
            raise StorageError(
                f"{self.path}: the last line is none of a study (it begins with {line[:20]!r}); name another `storage`."
            )
        try:
            json.loads(line)
        except ValueError:
            return file.truncate(file.seek(0, os.SEEK_END) - len(line))
        _write(file, b"\n")
        return file.seek(0, os.SEEK_END)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()


@one_sentence
class JournalStudies(JournalStorage):
    """Studies in a journal file, for as many processes as can lock it.

    Args:
        path: absolute. Made where it is missing; an unfinished last line is taken away.

    Raises:
        StorageError: a line is not one that a study writes.
    """

    def __init__(self, path: str) -> None:
        self.where = path
        self._file = JournalFile(path)
        super().__init__(self._file)
        self._file.mend()  # after the lines before it were read as those of a study

    def _sync_with_backend(self) -> None:
        try:
            super()._sync_with_backend()
        except (HeadscopeError, OSError):
            raise
        except Exception as error:
            number, log = self._file.last
            if isinstance(log, dict) and log.get("worker_id") == self._replay_result.worker_id:
                raise  # Optuna's answer to what this process has just asked
            self._replay_result.log_number_read = number - 1  # so that it is found again, whoever reads next
            raise StorageError(
                f"{self.where}: line {number} is none that a study writes ({type(error).__name__}: {brief(error)}); put a copy "
                "of the file back, or name another `storage`."
            ) from error


def _write(file: Any, data: bytes) -> None:
    while data:  # a nearly full disk takes a part and says nothing
        data = data[file.write(data) :]


def _ends_whole(file: IO[bytes]) -> bool:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return True
    file.seek(size - 1)
    return bool(file.read(1) == b"\n")


def _last_line(file: IO[bytes]) -> bytes:
    start, tail = file.seek(0, os.SEEK_END), b""
    while start > 0 and b"\n" not in tail:
        step = min(start, _BLOCK)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
    return bytes(tail.rpartition(b"\n")[2])


def _fault(error: Exception) -> str:
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else brief(error)
