"""A trace is a folder that survives a stop, names what is damaged, and refuses what is not its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from headscope.errors import DataError
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.runtime import generate
from headscope.tracing import TraceDataset, trace


@pytest.fixture(scope="module")
def samples(tiny: JanusModel) -> Samples:
    return generate(tiny, ["red apple", "dog", "a blue car on a red background"], 0)


def test_a_finished_trace_holds_every_head_of_both_streams(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    dataset = trace(tiny, samples, tmp_path / "t")
    table = dataset.heads()
    assert len(table) == 3 * 2 * 2 * 4
    assert set(table["stream"]) == {"conditional", "unconditional"}
    assert table.notna().all().all()
    curves = dataset.curves()
    assert curves["lag_mass"].shape == (2, 4, 16)
    assert curves["footprint"].shape == (2, 4, 4, 7)
    conditional = table[table["stream"] == "conditional"].groupby(["layer", "head"])
    image = 1 - torch.tensor(conditional["prefix_mass"].mean().to_numpy()).view(2, 4)
    torch.testing.assert_close(curves["footprint"].sum((2, 3)), image.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curves["lag_mass"].sum(2), image.float(), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "t" / "parts").exists()
    assert dataset.samples().prompts == samples.prompts


def test_a_stopped_trace_goes_on_and_ends_the_same(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    whole = trace(tiny, samples, tmp_path / "whole", batch_size=1).heads()

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(tiny, samples, tmp_path / "t", batch_size=1, progress=stop)
    with pytest.raises(DataError, match="stopped before its end"):
        TraceDataset(tmp_path / "t")
    damaged = tmp_path / "t" / "parts" / "000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:50])
    seen: list[int] = []
    with pytest.warns(UserWarning, match="000001: damaged, traced again"):
        resumed = trace(
            tiny, samples, tmp_path / "t", batch_size=1, progress=lambda done, total: seen.append(done), resume=True
        )
    assert seen == [2, 3]  # one part was whole
    pd.testing.assert_frame_equal(resumed.heads(), whole)


def test_what_is_not_this_trace_is_refused(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    trace(tiny, samples, tmp_path / "t")
    with pytest.raises(DataError, match="holds a trace already"):
        trace(tiny, samples, tmp_path / "t")
    with pytest.raises(DataError, match="other pictures"):
        trace(tiny, samples.select([0]), tmp_path / "t", resume=True)
    with pytest.raises(DataError, match="no picture to trace"):
        trace(tiny, samples.select([]), tmp_path / "u")
    with pytest.raises(DataError, match="holds no trace"):
        TraceDataset(tmp_path / "nothing")
    (tmp_path / "t" / "heads.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"heads\.parquet: damaged"):
        TraceDataset(tmp_path / "t").heads()


def test_the_trace_is_the_same_again(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    first = trace(tiny, samples, tmp_path / "a", batch_size=3).heads()
    second = trace(tiny, samples, tmp_path / "b", batch_size=3).heads()
    pd.testing.assert_frame_equal(first, second)
