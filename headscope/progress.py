"""How long work tells what it does: one protocol for every room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Told after each unit of work."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """Take one report.

        Args:
            task: what is being done; a task of another name is another one.
            done: units finished.
            total: units in all.
            note: what else there is to say, such as the least loss so far.
        """
        ...


def of_task(progress: Progress | None, task: str, begun: int | None = None) -> Callable[[int, int], None]:
    """`progress` for one task, to be called with units done and in all; of None, a function that does nothing.

    Args:
        progress: that is told.
        task: its name.
        begun: units in all, where they are known: then it is told at once that the task has begun.
    """
    if progress is None:
        return lambda done, total: None
    if begun is not None:
        progress(task, 0, begun)
    return lambda done, total: progress(task, done, total)


def renamed(progress: Progress | None, task: str) -> Progress | None:
    """`progress` that is told of `task`, whatever the work calls itself."""
    if progress is None:
        return None
    return lambda _, done, total, note="": progress(task, done, total, note)
