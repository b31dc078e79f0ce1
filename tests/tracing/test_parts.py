"""A trace that was stopped goes on from its parts, and a part that is damaged is made anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.models import Samples, load_model
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing import TraceDataset, trace


def test_a_stopped_trace_goes_on_and_ends_the_same(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    whole = trace(tiny, samples, tmp_path / "whole", batch_size=1).heads()

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(tiny, samples, tmp_path / "t", batch_size=1, progress=stop)
    with pytest.raises(DataError, match="stopped before its end"):
        TraceDataset(tmp_path / "t")
    damaged = tmp_path / "t" / "parts" / "000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:50])
    seen: list[int] = []
    with pytest.warns(UserWarning, match="000001: not as it was written, traced again"):
        resumed = trace(
            tiny, samples, tmp_path / "t", batch_size=1, progress=lambda task, done, total: seen.append(done), resume=True
        )
    assert seen == [0, 2, 3]  # one part was whole
    pd.testing.assert_frame_equal(resumed.heads(), whole)


def stopped(model: JanusModel, samples: Samples, out: Path) -> Path:
    """A trace that was stopped after its first image."""

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(model, samples, out, batch_size=1, progress=stop)
    return out


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_a_single_changed_byte_of_a_part_is_found(tiny: JanusModel, samples: Samples, tmp_path: Path, kind: str) -> None:
    whole = trace(tiny, samples, tmp_path / "whole", batch_size=1)
    name = {"parquet": "000000", "safetensors": "curves-0000.safetensors"}[kind]
    part = stopped(tiny, samples, tmp_path / "t") / "parts" / (name if "." in name else f"{name}.parquet")
    content = bytearray(part.read_bytes())
    content[-200] ^= 0xFF
    part.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{name}: not as it was written, traced again"):
        resumed = trace(tiny, samples, tmp_path / "t", batch_size=1, resume=True)
    pd.testing.assert_frame_equal(resumed.heads(), whole.heads())
    for name, curve in whole.curves().items():
        assert torch.equal(resumed.curves()[name], curve)


def test_a_temporary_file_of_a_killed_run_is_no_obstacle(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    parts = stopped(tiny, samples, tmp_path / "t") / "parts"
    (parts / ".000001.77.part.parquet").write_bytes(b"half of a pa")
    assert len(trace(tiny, samples, tmp_path / "t", resume=True).heads()) == 3 * 2 * 2 * 4
    assert not parts.exists()


def test_another_models_trace_is_not_continued(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    out = stopped(tiny, samples, tmp_path / "t")
    meta = json.loads((out / "trace.json").read_text())
    (out / "trace.json").write_text(json.dumps({**meta, "weights": "0" * 64}))
    with pytest.raises(DataError, match="other weights"):
        trace(tiny, samples, out, resume=True)


def test_a_full_disk_is_one_sentence_and_loses_no_part(
    tiny: JanusModel, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(tiny, samples, tmp_path / "t")

    def full(*args: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("headscope.tracing.parts.save_file", full)
        with pytest.raises(DataError, match="No space left on device"):
            trace(tiny, samples, out, resume=True)
    seen: list[int] = []
    trace(tiny, samples, out, batch_size=1, resume=True, progress=lambda task, done, total: seen.append(done))
    assert seen == [0, 2, 3]


_KILLED = """
import sys
from pathlib import Path
from headscope.models import Samples, load_model
from headscope.tracing import trace
model = load_model(sys.argv[1])
trace(model, Samples.load(sys.argv[2]), sys.argv[3], batch_size=1, progress=lambda task, done, total: print(done, flush=True))
"""


def test_a_killed_run_loses_at_most_the_image_it_was_at(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_folder))
    samples = generate(model, ["red apple", "dog", "a blue car"] * 20, 0)
    samples.save(tmp_path / "samples.parquet")
    command = [sys.executable, "-c", _KILLED, str(tiny_folder), str(tmp_path / "samples.parquet"), str(tmp_path / "t")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 5:
                process.kill()
                break
        told = int(line)
    seen: list[int] = []
    resumed = trace(
        model, samples, tmp_path / "t", batch_size=1, resume=True, progress=lambda task, done, total: seen.append(done)
    )
    assert seen[1] > told  # what it said was done is done
    assert seen[1] < 60
    whole = trace(model, samples, tmp_path / "whole", batch_size=1)
    pd.testing.assert_frame_equal(resumed.heads(), whole.heads())
    for name, curve in whole.curves().items():
        torch.testing.assert_close(resumed.curves()[name], curve)


def test_sums_whose_list_of_images_was_changed_are_made_anew(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    whole = trace(tiny, samples, tmp_path / "whole", batch_size=1).curves()
    file = stopped(tiny, samples, tmp_path / "t") / "parts" / "curves-0000.safetensors"
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    included = json.loads(facts["included"])
    save_file(load_file(file), file, {**facts, "included": json.dumps({"2": included["0"]})})
    with pytest.warns(UserWarning, match="curves-0000"):
        resumed = trace(tiny, samples, tmp_path / "t", batch_size=1, resume=True).curves()
    for name, curve in whole.items():  # else the first image would count twice
        assert torch.equal(resumed[name], curve)


def test_sums_of_earlier_versions_are_gone_on_with(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    file = stopped(tiny, samples, tmp_path / "t") / "parts" / "curves-0000.safetensors"
    with safe_open(file, "pt") as opened:
        facts = {name: text for name, text in opened.metadata().items() if name in ("included", "digest")}
    save_file(load_file(file), file, facts)
    seen: list[int] = []
    trace(tiny, samples, tmp_path / "t", batch_size=1, resume=True, progress=lambda task, done, total: seen.append(done))
    assert seen == [0, 2, 3]
