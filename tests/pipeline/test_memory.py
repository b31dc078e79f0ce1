"""What is free: of the machine, of the container, of the process' own limit, in folders that look like the kernel's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headscope.pipeline import memory
from headscope.pipeline.budgets import free_memory

GIB = 2**30
UNLIMITED = 9223372036854771712


def machine(root: Path, cgroup: str, *, available: int = 64 * GIB) -> tuple[Path, Path]:
    """A /proc whose process is in `cgroup`, and a place for control groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    return root / "proc", root / "cgroup"


def group(folder: Path, limit: int | str, used: int, cached: int = 0, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    stat = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{stat} {cached}\nfile 7\n")


def test_the_nearest_group_with_a_limit_counts_without_its_cached_files(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/user/job/step\n")
    group(groups / "user" / "job" / "step", "max", 3 * GIB)
    group(groups / "user" / "job", 8 * GIB, 5 * GIB, 2 * GIB)
    group(groups / "user", 100 * GIB, 60 * GIB)
    assert memory.free_bytes(proc, groups) == 5 * GIB


def test_a_group_above_may_have_less_left(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/user/job\n")
    group(groups / "user" / "job", 8 * GIB, 1 * GIB)
    group(groups / "user", 16 * GIB, 15 * GIB)
    assert memory.free_bytes(proc, groups) == GIB


@pytest.mark.parametrize("path", ["/", "/docker/0123abc", "/../../kubepods/pod"])
def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path, path: str) -> None:
    proc, groups = machine(tmp_path, f"0::{path}\n")
    group(groups, 2 * GIB, GIB)
    assert memory.free_bytes(proc, groups) == GIB


def test_the_first_version_of_groups_beside_the_second(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/\n0::/\n")
    group(groups / "memory" / "job", 4 * GIB, 3 * GIB, GIB, version=1)
    group(groups / "memory", UNLIMITED, 50 * GIB, version=1)
    assert memory.free_bytes(proc, groups) == 2 * GIB


@pytest.mark.parametrize("limit", [UNLIMITED, 2**63 - 1])
def test_no_limit_leaves_what_the_machine_has(tmp_path: Path, limit: int) -> None:
    proc, groups = machine(tmp_path, "4:memory:/job\n0::/job\n", available=3 * GIB)
    group(groups / "memory" / "job", limit, GIB, version=1)
    group(groups / "job", "max", GIB)
    assert memory.free_bytes(proc, groups) == 3 * GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/\n")
    group(groups, GIB, 2 * GIB)
    assert memory.free_bytes(proc, groups) == 0


def test_without_a_kernel_that_tells_half_of_what_is_built_in(tmp_path: Path) -> None:
    assert memory.free_bytes(tmp_path, tmp_path) > 0


def test_what_the_commands_go_by_is_three_quarters_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscope.pipeline.budgets.free_bytes", lambda: 4 * GIB)
    assert free_memory("cpu") == 3 * GIB


def test_a_limit_of_addresses_counts_less_what_is_in_use(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/\n")
    (proc / "self" / "statm").write_text("1000 500 1 1 0 1 0\n")
    code = (
        "import importlib.util, pathlib, resource, sys\n"
        "spec = importlib.util.spec_from_file_location('memory', sys.argv[1])\n"
        "memory = importlib.util.module_from_spec(spec); spec.loader.exec_module(memory)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "print(memory.free_bytes(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])), resource.getpagesize())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, memory.__file__, proc, groups], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(said[0]) == 2**31 - 1000 * int(said[1])
