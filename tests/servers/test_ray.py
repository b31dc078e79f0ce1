"""Trials and tracing on a real local Ray cluster of three workers, one of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from optuna.trial import TrialState

from headscope.storage import read_json
from headscope.tracing import TraceDataset
from headscope.tuning.study.storage import open_storage
from headscope.tuning.study.workers import WORKER

pytestmark = pytest.mark.ray
TRIALS = 120


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "headscope", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "ray"
    command = ("trace", "stickers", "--out", out, "--calibration", 12, "--unseen", 2, "--workers", 3, "--engine", "ray")
    assert start(*command).wait() == 0
    assert start("heads", out).wait() == 0
    return out


def test_shards_make_the_trace_of_one_process(run: Path) -> None:
    alone = run.parent / "alone"
    assert start("trace", "stickers", "--out", alone, "--calibration", 12, "--unseen", 2).wait() == 0
    mine, theirs = TraceDataset(run / "trace"), TraceDataset(alone / "trace")
    assert len(mine.meta["merged"]) == 3
    pd.testing.assert_frame_equal(mine.heads(), theirs.heads(), rtol=1e-4, atol=1e-5, check_like=True)
    for name, curve in theirs.curves().items():
        torch.testing.assert_close(mine.curves()[name], curve, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert not (run / "trace-shards").exists()


def test_a_killed_worker_costs_its_trial_and_nothing_else(run: Path) -> None:
    journal = run / "search" / "ray.journal"
    options = ("--keep", "20%", "--quick", "--trials", TRIALS, "--patience", 0, "--workers", 4, "--engine", "ray")
    leader = start("search", run, *options, "--storage", journal)
    killed = _kill_one(journal, leader)
    assert leader.wait() == 0
    trials = pd.read_parquet(run / "search" / "trials.parquet")
    made = trials[trials["label"].fillna("").str.endswith("trial")]
    assert made["state"].isin(["complete", "pruned"]).sum() >= TRIALS
    assert len(_workers(journal)) >= 4  # the leader, and three processes of the cluster
    lost = [trial for trial in _trials(journal) if trial.state == TrialState.FAIL]
    assert [str(trial.user_attrs[WORKER]) for trial in lost] == [killed]
    again = [trial for trial in _trials(journal) if trial.state != TrialState.FAIL and trial.params == lost[0].params]
    assert len(again) >= 1
    assert read_json(run / "search" / "search.json")["best"]["kl"] > 0


def _trials(journal: Path) -> list:  # type: ignore[type-arg]
    storage = open_storage(journal)
    return [trial for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id)]


def _workers(journal: Path) -> set[str]:
    return {str(trial.user_attrs[WORKER]) for trial in _trials(journal) if WORKER in trial.user_attrs}


def _kill_one(journal: Path, leader: subprocess.Popen[bytes]) -> str:
    """Kill a worker of the cluster while it measures; which one."""
    for _ in range(600):
        time.sleep(0.2)
        assert leader.poll() is None, "the search ended before the cluster had joined"
        if not journal.is_file():
            continue
        running = [trial for trial in _trials(journal) if trial.state == TrialState.RUNNING and WORKER in trial.user_attrs]
        for trial in running:
            worker = str(trial.user_attrs[WORKER])
            number = int(worker.split(":")[1])
            if number != leader.pid and len(_workers(journal)) >= 4 and len(trial.params) > 0:
                os.kill(number, signal.SIGKILL)
                return worker
    raise AssertionError("no worker of the cluster took a trial")
