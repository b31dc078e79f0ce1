"""Jobs for processes that are started anew, apart from the tests so that torch is loaded in none of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from headscope.errors import DataError


def note(folder: str, number: int) -> str:
    """Leaves a file each time it is called."""
    Path(folder, f"{number}-{time.monotonic_ns()}").touch()
    return str(number)


def slow(folder: str, number: int) -> str:
    time.sleep(0.5)
    return note(folder, number)


def dies_once(folder: str, number: int) -> str:
    first = Path(folder, "died")
    if number == 1 and not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return note(folder, number)


def dies(folder: str, number: int) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def refuses(folder: str, number: int) -> str:
    raise DataError(f"number {number} is not to be had")


def hears_a_stop() -> str:
    """Whether the keyboard's stop would end this process."""
    return "no" if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else "yes"
