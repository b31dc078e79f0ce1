"""The lock beside a journal: who appends holds it, and nobody waits for a holder that is gone.

A writer that was killed leaves its lock. One whose holder is gone is taken over at once on the same machine, and after
`GRACE` seconds from another one.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: a lock that was left is waited for
    fcntl = None  # type: ignore[assignment]

# A lock of which we can't know whether its holder lives is taken over once it stayed the same for so many seconds.
GRACE = 30.0
# After so many seconds of waiting for a lock the user is told.
PATIENCE = 3.0


class JournalLock:
    """A lock file that is made exclusively, as Optuna's own locks are, so that both exclude each other.

    Its holder keeps an advisory lock on it (`flock`), which the kernel takes off when the process ends however it ends, and
    then writes the kernel's boot id into it: who reads its own boot id there and gets the advisory lock knows that the
    holder is gone, whatever its number, user or namespace.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._held = -1

    def acquire(self) -> None:
        """Wait until the lock is ours."""
        pause, began, told = 0.001, time.monotonic(), False
        seen, since = self._identity(), began
        while True:
            try:
                self._held = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            except FileExistsError:
                pass
            else:
                self._sign()
                return
            now = time.monotonic()
            if (current := self._identity()) != seen:
                seen, since = current, now
            if self._removed() or (now - since > GRACE and self._removed_unseen(seen)):
                continue
            if now - began > PATIENCE and not told:
                told = True
                print(
                    f"{self.path}: held by another process; waiting, {GRACE:.0f} s at most if it stays as it is.",
                    file=sys.stderr,
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    def release(self) -> None:
        """Give the lock back; one that was taken over meanwhile is another process' own."""
        held, self._held = self._held, -1
        try:
            if self._is(held):
                os.unlink(self.path)  # before it is closed: a file without its advisory lock says that its holder is gone
        finally:
            os.close(held)

    def holds(self) -> bool:
        """Whether the lock is still ours."""
        return self._is(self._held)

    def _is(self, descriptor: int) -> bool:
        """Whether the lock file is the one that is open as `descriptor`."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        return False

    def _sign(self) -> None:
        if fcntl is None or not (kernel := boot_id()):
            return
        try:
            with suppress(OSError):  # a file system without advisory locks, or full: nothing is said about the holder
                fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(self._held, kernel.encode())
        except BaseException:
            self.release()
            raise

    def _identity(self) -> tuple[int, ...] | None:
        with suppress(OSError):
            found = os.lstat(self.path)
            return found.st_dev, found.st_ino, found.st_mtime_ns
        return None

    def _removed(self) -> bool:
        """Remove the lock of a holder of this kernel that is gone; whether it was."""
        if fcntl is None or not (kernel := boot_id()):
            return False
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)  # Optuna's own is a link, which says nothing
        except OSError:
            return False
        try:
            if os.read(file, 100) != kernel.encode():
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is(file):  # else another process was faster
                os.unlink(self.path)
            return True
        except OSError:
            return False
        finally:
            os.close(file)

    def _removed_unseen(self, seen: tuple[int, ...] | None) -> bool:
        """Remove the lock of a holder that can't be seen, if it is still the one that we waited for."""
        with suppress(OSError):
            if self._identity() == seen:
                os.unlink(self.path)
                return True
        return False


def boot_id() -> str:
    """Which run of which kernel this is; "" where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
