"""Traces of one model become one."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from headscope.errors import DataError
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.tracing import Selection, merge_traces, trace


def test_shards_merge_to_the_trace_of_all(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    whole = trace(tiny, samples, tmp_path / "whole", batch_size=1)
    trace(tiny, samples.select([0]), tmp_path / "a", batch_size=1)
    trace(tiny, samples.select([1, 2]), tmp_path / "b", batch_size=1)
    merged = merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    # Alone, a short prompt has no padding beside it.
    pd.testing.assert_frame_equal(merged.heads(), whole.heads(), rtol=1e-4, atol=1e-5)
    for name, curve in whole.curves().items():
        torch.testing.assert_close(merged.curves()[name], curve, rtol=1e-4, atol=1e-6)
    assert merged.samples().prompts == samples.prompts
    assert merged.meta["images"] == whole.meta["images"]
    pd.testing.assert_frame_equal(merged.words(), whole.words(), rtol=1e-4, atol=1e-5)


def test_shards_that_do_not_belong_together_are_refused(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    trace(tiny, samples.select([0]), tmp_path / "a")
    trace(tiny, samples.select([1]), tmp_path / "b", selection=Selection(every=2))
    with pytest.raises(DataError, match=r"of other selection than .* \(\w+ .*, there .*\); merge only"):
        merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with pytest.raises(DataError, match=r"is in .* too"):
        merge_traces([tmp_path / "a", tmp_path / "a"], tmp_path / "m")
    meta = json.loads((tmp_path / "b" / "trace.json").read_text())
    (tmp_path / "b" / "trace.json").write_text(json.dumps({**meta, "weights": "0"}))
    with pytest.raises(DataError, match="of other weights than"):
        merge_traces([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert not (tmp_path / "m").exists()
