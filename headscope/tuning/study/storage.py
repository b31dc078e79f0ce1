"""Storages: where a study is kept. A SQLite file for one process, a journal file or a database server for more."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.pool import QueuePool

from headscope.errors import DataError, HeadscopeError
from headscope.tuning.study.faults import BROKEN, brief, one_sentence, storage_fault, unreadable
from headscope.tuning.study.journal import JournalStudies

_DRIVERS = {"postgresql": "psycopg", "mysql": "PyMySQL"}
# Seconds that a SQLite file is waited for while another connection writes.
_BUSY = 60


def open_storage(where: str | Path | None) -> BaseStorage:
    """Open, or make, the storage at `where`.

    Args:
        where: a SQLite file (one process), a journal file (`*.journal`, many processes on one file system), a database URL
            (`postgresql://user@host/name`, many machines), or None to keep nothing. A file's path counts from the working
            folder of this moment, whatever the working folder is later.

    Raises:
        DataError: not a storage, a server that does not answer, a missing driver; later, from any use of the storage, when
            it can't be read or written.
    """
    if where is None:
        return InMemoryStorage()
    if "://" in str(where):
        return _database(str(where))
    try:
        path = os.path.realpath(where)  # through links too: one file has one lock, by whatever name it is opened
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise storage_fault(str(where), error) from error
    try:
        return JournalStudies(path) if shared(where) else SqliteStudies(path)
    except HeadscopeError:
        raise
    except BROKEN as error:
        raise storage_fault(path, error) from error
    except Exception as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True)
class StudyStore:
    """Where the studies of one search are kept, and what they belong to.

    Attributes:
        storage: of `open_storage`.
        where: its name for messages.
        name: what a study's name begins with, where one storage keeps several searches.
        identity: what the studies belong to, JSON values; a stored study of something else is refused.
    """

    storage: BaseStorage
    where: str = "the study"
    name: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, where: str | Path | None, name: str = "", identity: Mapping[str, Any] | None = None) -> StudyStore:
        """Open, or make, the storage of a search.

        Args:
            where: see `open_storage`.
            name: what a study's name begins with, where one storage keeps several searches.
            identity: what the studies belong to, JSON values by name.
        """
        return cls(open_storage(where), "the study" if where is None else shown(where), name, dict(identity or {}))

    def belonging(self, **facts: Any) -> StudyStore:
        """The same, of studies that belong to more."""
        return replace(self, identity={**facts, **self.identity})


def shared(where: str | Path | None) -> bool:
    """Whether more than one process may work on this storage."""
    return where is not None and ("://" in str(where) or str(where).endswith(".journal"))


def for_one(storage: BaseStorage) -> bool:
    """Whether an open storage is for one process only."""
    return isinstance(storage, (InMemoryStorage, SqliteStudies))


def shown(where: str | Path | None) -> str:
    """The storage for people: a URL without its password."""
    text = str(where)
    if "://" not in text:
        return text
    scheme, rest = text.split("://", 1)
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.split(':')[0]}{at}{host}"


def check_sampler(sampler: str, where: str, *, alone: bool) -> None:
    """Refuse CMA-ES, whose state is a pickle, in a storage that others may write to.

    Args:
        sampler: its name.
        where: the storage's, for the message.
        alone: whether the storage is for one process only.

    Raises:
        DataError: see above.
    """
    if sampler == "cma-es" and not alone:
        raise DataError(
            f"sampler cma-es: keeps its state as a pickle in the storage, and {where} is one that others may write to; "
            "choose another sampler, or a SQLite file of your own."
        )


class _Rows(RDBStorage):
    """Also refuses rows that Optuna reads and then cannot put in order."""

    def _get_trials(self, *arguments: Any, **named: Any) -> list[FrozenTrial]:
        trials = super()._get_trials(*arguments, **named)
        for trial in trials:
            if type(trial.number) is not int:
                raise ValueError(f"a trial's number is {trial.number!r:.60}")
        return trials


@one_sentence
class SqliteStudies(_Rows):
    """Studies in a SQLite file.

    The file is opened by its path and never by a URL, in which `?`, `%`, `#` and `{}` mean something else. Its log is
    written ahead: as safe when a process dies and eight times faster than a file synced at every line (32 losses of a
    trial: 0.04 s in place of 0.35).
    """

    def __init__(self, path: str) -> None:
        self.where = path

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(path, timeout=_BUSY, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            return connection

        super().__init__("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool})


@one_sentence
class ServerStudies(_Rows):
    """Studies on a database server."""

    def __init__(self, url: str) -> None:
        self.where = f"storage {shown(url)}"
        plain = url.replace("{", "{{").replace("}", "}}")  # Optuna takes a URL for a template
        super().__init__(plain, engine_kwargs={"pool_pre_ping": True})


def _database(url: str) -> RDBStorage:
    scheme = url.split("://", 1)[0]
    name = scheme.split("+")[0]
    try:
        if name == "postgresql" and "+" not in scheme:  # the driver that `headscope[postgresql]` brings
            return ServerStudies(url.replace("postgresql://", "postgresql+psycopg://", 1))
        return ServerStudies(url)
    except ImportError:
        driver = _DRIVERS.get(name, name)
        raise DataError(f"storage {shown(url)}: needs the driver {driver}; pip install {driver}.") from None
    except Exception as error:
        raise DataError(
            f"storage {shown(url)}: no study can be kept there ({brief(error)}); start the server or check the address."
        ) from None
