"""Mutants of a trace, finished or stopped: read and merged, or one sentence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headscope.heads.features import features
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing import Selection, TraceDataset, merge_traces, trace
from headscope.tracing.parts import Parts
from tests.fuzz.mutants import mutated_bytes, mutated_json, mutated_parquet, mutated_safetensors, seeds, survives

PROMPTS = ["red apple", "dog"]


@pytest.fixture(scope="module")
def samples(tiny: JanusModel) -> Samples:
    return generate(tiny, [*PROMPTS, "a blue car"], 0)


@pytest.fixture(scope="module")
def finished(tiny: JanusModel, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "trace"
    trace(tiny, samples.select([0, 1]), out, selection=Selection(band_count=2))
    return out


@pytest.fixture(scope="module")
def other(tiny: JanusModel, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("other") / "trace"
    trace(tiny, samples.select([2]), out, selection=Selection(band_count=2))
    return out


@pytest.fixture(scope="module")
def stopped(tiny: JanusModel, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "trace"

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(tiny, samples.select([0, 1]), out, batch_size=2, progress=stop)
    return out


def well_formed(data: bytes, rng: random.Random) -> bytes:
    """A mutant in the format of its file."""
    if data[:4] == b"PAR1":
        return mutated_parquet(data, rng)
    if data[:1] == b"{":
        return json.dumps(mutated_json(json.loads(data), rng)).encode()
    return mutated_safetensors(data, rng)


def everything(folder: Path, other: Path) -> Any:
    """What classes, tables, reports and `trace merge` read of a trace."""
    found = TraceDataset(folder)
    found.statistics()
    found.words(layer=[0, 1])
    curves = found.curves()
    curves["footprint"].nan_to_num(0.0).unflatten(1, (2, 2)).mean(2)
    features(found.heads(), 4, 2)
    found.heads(["entropy"], layer=[0], band=None)
    if damage := found.damage():
        raise damage
    merged = merge_traces([folder, other], folder.parent / "merged")
    merged.words()
    return merged.meta["samples"]


@pytest.mark.parametrize("mutated", [mutated_bytes, well_formed])
def test_a_mutant_of_a_trace_is_one_sentence_or_of_use(finished: Path, other: Path, tmp_path: Path, mutated: Callable) -> None:
    folder = tmp_path / "trace"
    shutil.copytree(finished, folder)
    for number, rng in seeds(part=4):
        file = folder / rng.choice(sorted(file.name for file in folder.iterdir()))
        good = file.read_bytes()
        file.write_bytes(mutated(good, rng))
        survives(lambda: everything(folder, other), f"{number} of {file.name}")
        file.write_bytes(good)
        shutil.rmtree(tmp_path / "merged", ignore_errors=True)


def gone_on(folder: Path) -> Any:
    """What `trace --resume` does with a stopped trace before and after it traces what is missing."""
    parts = Parts(folder, len(PROMPTS))
    missing = parts.missing()
    parts.joined()
    return missing


@pytest.mark.parametrize("mutated", [mutated_bytes, well_formed])
def test_a_mutant_of_a_part_is_one_sentence_or_of_use(stopped: Path, tmp_path: Path, mutated: Callable) -> None:
    shutil.copytree(stopped, tmp_path / "trace")
    files = sorted((tmp_path / "trace" / "parts").iterdir())
    for number, rng in seeds(part=4):
        file = rng.choice(files)
        good = file.read_bytes()
        file.write_bytes(mutated(good, rng))
        survives(lambda: gone_on(tmp_path / "trace"), f"{number} of {file.name}")
        file.write_bytes(good)


@pytest.mark.filterwarnings("ignore:.*traced again")
def test_every_field_of_trace_json_that_is_nasty_is_one_sentence_when_a_trace_goes_on(
    tiny: JanusModel, samples: Samples, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "trace")
    file = tmp_path / "trace" / "trace.json"
    good = json.loads(file.read_text())
    for number, rng in seeds(part=20):
        file.write_text(json.dumps(mutated_json({**good, "complete": True}, rng)))
        survives(lambda: trace(tiny, samples.select([0, 1]), tmp_path / "trace", resume=True), number)
