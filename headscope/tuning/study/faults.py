"""Faults of a storage, in one sentence: what Optuna, SQLAlchemy and the file system raise while a study is kept."""

from __future__ import annotations

import errno
import functools
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from headscope.errors import DataError, HeadscopeError

Storage = TypeVar("Storage", bound=type[BaseStorage])

# What Optuna itself answers and means: who asked knows what to do.
_ANSWERS = (HeadscopeError, DuplicatedStudyError, UpdateFinishedTrialError)
_NOT_THERE = ("Record does not exist", "No trial")
# Whoever raises these could not read or write at all.
BROKEN = (StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError)
# Asked by Optuna's cache in place of the public methods.
_BY_THE_CACHE = ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_best_trial_id")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageError(DataError):
    """A study's storage cannot be read or written, or holds what no study writes: the search ends."""


def storage_fault(where: str, error: BaseException) -> StorageError:
    """The sentence for what a storage raised."""
    reason = brief(error)
    full = "disk is full" in reason or getattr(error, "errno", None) in _FULL
    todo = "free some space there and give the same command again" if full else "look there, or name another `storage`"
    return StorageError(f"{where}: the study cannot be kept there ({reason}); {todo}.")


def unreadable(where: str, error: BaseException) -> StorageError:
    """The sentence for a storage that answers with what no study writes."""
    return StorageError(
        f"{where}: holds what no study writes ({type(error).__name__}: {brief(error)}); "
        "put a copy back, or name another `storage`."
    )


def brief(error: BaseException) -> str:
    """The first line of an error, of the driver's own where there is one; without an address that might hold a password."""
    cause = error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text.splitlines()[0][:160])


def one_sentence(kind: Storage) -> Storage:
    """Decorate a storage class: what its methods raise becomes a `StorageError` that names the storage's `where`."""
    public = [name for name in dir(BaseStorage) if not name.startswith("_")]
    for name in (*public, *_BY_THE_CACHE):
        if (method := getattr(kind, name, None)) is not None:
            setattr(kind, name, _told(method, reads=name.startswith(("get", "_get"))))
    return kind


def _told(method: Callable[..., Any], *, reads: bool) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return method(self, *arguments, **named)
        except _ANSWERS:
            raise
        except BROKEN as error:
            raise storage_fault(self.where, error) from error
        except Exception as error:
            if not reads or any(said in str(error) for said in _NOT_THERE):
                raise
            raise unreadable(self.where, error) from error

    return call
