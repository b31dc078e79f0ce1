"""Runs the steps one after the other, each in a process of its own that is killed when its time is over."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from headscope.benchmarks.gpu import records
from headscope.benchmarks.gpu.__main__ import REFUSED
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.steps import Step
from headscope.benchmarks.gpu.table import write_decode
from headscope.errors import DataError, ModelError
from headscope.storage import read_json, write_json

RUN = "run.json"
LEAST = 5.0  # seconds below which no step is worth its start
_SAME = ("shape", "dtype", "device", "dry")


def run_steps(context: Context, steps: list[Step], budget: float, say: Callable[[str], object]) -> None:
    """Run steps into `context.out`: results.jsonl, run.json, decode.csv and, from step `events`, profile.txt.

    A step that fails, hangs or is killed costs itself alone, and a sentence about it stands in the results.

    Args:
        context: of every step, but for its name and its end.
        steps: in their order.
        budget: seconds for all of them.
        say: told of each step's begin and end.

    Raises:
        DataError: the folder holds results of another shape, dtype or device.
        ModelError: a card that no step can run on.
    """
    began, ended = time.time(), []
    _settle(context)
    try:
        for step in steps:
            left = budget - (time.time() - began)
            if left < LEAST:
                _fault(context, step, f"step {step.name}: not begun, since the {budget:g} s are over; give `budget` more.")
                continue
            seconds = min(step.seconds, left)
            say(f"{step.name}: {step.tells}, at most {seconds:.0f} s ...")
            start = time.time()
            status = _run(replace(context, step=step.name, until=start + seconds), seconds)
            ended.append({"step": step.name, "status": status, "seconds": round(time.time() - start, 1)})
            say(f"{step.name}: {status} after {time.time() - start:.1f} s")
    finally:
        _note(context, {"began": began, "budget": budget, "steps": ended})
        write_decode(context.out)


def command(context: Context) -> list[str]:
    """What starts a step's process.

    Args:
        context: of the step.
    """
    return [sys.executable, "-m", "headscope.benchmarks.gpu", context.written()]


def _run(context: Context, seconds: float) -> str:
    """One step's process -> "done", "failed" or "stopped"."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        # Read when triton is imported: without a GPU kernels run in its interpreter.
        env = os.environ if context.cuda else {**os.environ, "TRITON_INTERPRET": "1"}
        process = subprocess.Popen(command(context), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=env)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _fault(context, None, f"step {context.step}: stopped after its {seconds:.0f} s; what it had measured stands.")
            return "stopped"
        finally:
            process.kill()  # also when we are stopped ourselves
            process.wait()
        if status == REFUSED:
            raise ModelError(_last(said, 1))
        if status not in (0, 1):  # 1: it has said so itself
            _fault(context, None, f"step {context.step}: its process ended with status {status}.", trace=_last(said, 20))
        return "done" if status == 0 else "failed"


def _last(said: IO[str], count: int) -> str:
    """The last lines that a process wrote."""
    said.seek(0)
    return "\n".join(said.read().strip().splitlines()[-count:])


def _fault(context: Context, step: Step | None, sentence: str, **more: Any) -> None:
    """What the runner itself has to say; it never asks the device for its name."""
    about = {"step": context.step if step is None else step.name, "shape": context.shape, "dtype": context.dtype}
    records.append(context.out, {**about, "device": context.device, "what": "fault", "value": sentence, "unit": "", **more})


def _settle(context: Context) -> None:
    """Make the folder, or refuse one that holds what can't stand in one table with this."""
    path = context.out / RUN
    if path.is_file():
        found = read_json(path)
        for name in _SAME:
            if found.get(name) != getattr(context, name):
                raise DataError(
                    f"{context.out}: holds results of {name} {found.get(name)}, not {getattr(context, name)}; "
                    "name another folder with `out`."
                )
        return
    if (context.out / records.RESULTS).exists():
        raise DataError(f"{context.out}: holds {records.RESULTS} without {RUN}; name another folder with `out`.")
    context.out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**{name: getattr(context, name) for name in _SAME}, "batch": context.batch, "guidance": 5.0, "runs": []})
    (context.out / records.RESULTS).touch()


def _note(context: Context, run: dict[str, Any]) -> None:
    """Add one run to run.json."""
    path: Path = context.out / RUN
    found = read_json(path)
    write_json(path, {**found, "runs": [*found["runs"], {**run, "seconds": round(time.time() - run["began"], 1)}]})
