"""How much memory a process may still take: what the machine has free, what its container allows, what its own limit leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Where nothing says what is free.
UNKNOWN = 4 * 2**30
# A limit from here on stands for none: version 1 writes the largest number of pages there is.
NO_LIMIT = 2**60
# (limit, what is used, and what of that is cached files nobody needs: a line of memory.stat), by version of control groups.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """The least of what the machine has free, what the control groups of this process leave, and what RLIMIT_AS leaves.

    Args:
        proc: where the kernel tells of processes and memory.
        cgroups: where control groups are mounted.
    """
    machine = _available(proc)
    left = [*_left_by_groups(proc, cgroups), *_left_of_addresses(proc)]
    return max(min([machine if machine is not None else _physical(), *left]), 0)


def peak_bytes() -> int:
    """The most memory that this process has held so far; 0 where the system does not count it (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _available(proc: Path) -> int | None:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return None


def _physical() -> int:
    """Half of what is built in: where the kernel does not say what is free."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return UNKNOWN


def _left_by_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Limit less use of each group that this process is in, and of each above it: every one of them counts."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root, names = cgroups, _V2
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", _V1
        else:
            continue
        inside = Path(*(part for part in path.split("/") if part not in ("", "..")))
        # In a container the path may be the host's, which is not there; its own group then is the root.
        for group in (root / inside, *(root / above for above in inside.parents)):
            if (left := _left(group, *names)) is not None:
                yield left


def _left(group: Path, limit_name: str, use_name: str, cached_name: str) -> int | None:
    limit, use = _number(group / limit_name), _number(group / use_name)
    if limit is None or use is None or limit >= NO_LIMIT:
        return None
    stat = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    return limit - (use - int(stat.get(cached_name, 0)))


def _left_of_addresses(proc: Path) -> Iterator[int]:
    """What `ulimit -v` leaves: the limit less the addresses in use."""
    try:
        import resource
    except ImportError:
        return
    limit, pages = resource.getrlimit(resource.RLIMIT_AS)[0], _text(proc / "self" / "statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        yield limit - int(pages[0]) * resource.getpagesize()


def _number(path: Path) -> int | None:
    """None for `max`, and where there is no such file."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
