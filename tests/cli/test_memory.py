"""Whether the command's process uses freed blocks again: glibc marks a block that it would give back in the word before it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

LOOK = """
import ctypes
import sys
from headscope.cli.app import _keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def given_back(size):
    return bool(ctypes.c_size_t.from_address(libc.malloc(ctypes.c_size_t(size)) - 8).value & 2)

if sys.argv[1:]:
    print(given_back(1 << 24))
else:
    before = given_back(1 << 24)
    _keep_freed_memory()
    print(before, given_back(1 << 24), flush=True)
    import subprocess
    subprocess.run([*sys.orig_argv, "child"], check=True)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.maxsize < 2**32, reason="the layout of blocks is that of glibc on 64 bits"
)


def look(**environment: str) -> list[str]:
    """What a fresh process finds, before and after, and what a process that it starts finds: whether a block is given back."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name != "LD_PRELOAD"}
    return subprocess.run(
        [sys.executable, "-c", LOOK], env=plain | environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_large_blocks_are_used_again_here_and_in_processes_that_it_starts() -> None:
    assert look() == ["True", "False", "False"]


def test_who_has_set_it_keeps_it() -> None:
    assert look(MALLOC_MMAP_THRESHOLD_="131072") == ["True", "True", "True"]
