"""Optuna's own log lines and notes on experimental arguments are not for our users."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import optuna

_lock = threading.Lock()
_inside = 0
_undo = ExitStack()


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna quiet while the block runs.

    How loud it is belongs to the process, not to a thread: the first thread that comes in turns it down, and the last one
    that leaves puts back what the first one found.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _undo.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            _undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _undo.close()
