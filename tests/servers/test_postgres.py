"""A study that processes share through a real PostgreSQL server, one of them killed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headscope.errors import DataError
from tests.tuning.landscape import run

pytestmark = pytest.mark.postgres


def binary(name: str) -> str:
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"PostgreSQL is not installed: no {name}")
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own, for as long as the tests run; it refuses to be root."""
    user = "postgres" if os.geteuid() == 0 else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = f"{folder}/data"
        asked = [binary("initdb"), "-D", data, "-U", "headscope", "--auth=trust", "-E", "UTF8"]
        subprocess.run(asked, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)
        begun = [binary("postgres"), "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
        process = subprocess.Popen(begun, user=user, stderr=subprocess.DEVNULL, cwd=folder)
        url = f"postgresql://headscope@127.0.0.1:{port}/postgres"
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(0.5)  # it listens a moment before it takes questions
        yield url
        process.send_signal(signal.SIGINT)  # at once, whoever is still connected
        process.wait(timeout=30)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.tuning.landscape", *map(str, arguments)])


def test_processes_share_a_server_and_a_dead_one_costs_its_trial(server: str) -> None:
    run(0, server)  # the incumbents
    doomed, other = start(server, 24, "tpe", 6), start(server, 24, "tpe")
    assert doomed.wait() == -9
    assert other.wait() == 0
    result, land = run(24, server)
    assert land.measured == []
    made = result.trials[result.trials["label"].fillna("").str.endswith("trial")]
    assert made["state"].isin(["complete", "pruned"]).sum() >= 24
    lost = result.trials[result.trials["state"] == "fail"]
    assert len(lost) == 1
    numbers = [name for name in lost.columns if name.startswith("number_") and lost[name].notna().all()]
    again = made[(made["phase"] == lost["phase"].iloc[0]) & (made[numbers] == lost[numbers].iloc[0]).all(axis=1)]
    assert len(again) >= 1


def test_a_killed_study_continues_as_one_that_was_not(server: str) -> None:
    whole, _ = run(8, study="whole ")
    assert start(server, 8, "tpe", 16, "killed ").wait() == -9
    rest, _ = run(8, server, study="killed ")
    assert rest.policy.same_as(whole.policy)


def test_another_study_of_the_same_name_is_refused(server: str) -> None:
    run(1, server, study="mine ")
    with pytest.raises(DataError, match="was made for another seed"):
        run(1, server, study="mine ", seed=9)
