"""A trace is a folder that names what is damaged, and refuses what is not its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.models import Samples
from headscope.models.janus import JanusModel
from headscope.tracing import Selection, TraceDataset, trace
from headscope.tracing.files import KEYS


def test_a_finished_trace_holds_every_head_of_both_streams(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    dataset = trace(tiny, samples, tmp_path / "t")
    table = dataset.heads()
    assert len(table) == 3 * 2 * 2 * 4
    assert set(table["stream"]) == {"conditional", "unconditional"}
    assert table.notna().all().all()
    assert dataset.meta["statistics"] == [name for name in table.columns if name not in KEYS]
    curves = dataset.curves()
    assert curves["lag_mass"].shape == (2, 4, 16)
    assert curves["footprint"].shape == (2, 4, 4, 7)
    assert curves["cache_divergence"].shape == (2, 2, 15)
    conditional = table[table["stream"] == "conditional"].groupby(["layer", "head"])
    image = 1 - torch.tensor(conditional["prefix_mass"].mean().to_numpy()).view(2, 4)
    torch.testing.assert_close(curves["footprint"].sum((2, 3)), image.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curves["lag_mass"].sum(2), image.float(), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "t" / "parts").exists()
    assert dataset.samples().prompts == samples.prompts


def test_what_is_not_this_trace_is_refused(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    trace(tiny, samples, tmp_path / "t")
    with pytest.raises(DataError, match="holds a trace already"):
        trace(tiny, samples, tmp_path / "t")
    with pytest.raises(DataError, match="other images"):
        trace(tiny, samples.select([0]), tmp_path / "t", resume=True)
    with pytest.raises(DataError, match="holds a trace of every 1, not 2; choose another folder"):
        trace(tiny, samples, tmp_path / "t", resume=True, selection=Selection(every=2))
    with pytest.raises(DataError, match="no image to trace"):
        trace(tiny, samples.select([]), tmp_path / "u")
    with pytest.raises(DataError, match="holds no trace"):
        TraceDataset(tmp_path / "nothing")
    (tmp_path / "t" / "heads.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"heads\.parquet: not a table of a trace"):
        TraceDataset(tmp_path / "t").heads()


def test_the_trace_is_the_same_again(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    first = trace(tiny, samples, tmp_path / "a", batch_size=3).heads()
    second = trace(tiny, samples, tmp_path / "b", batch_size=3).heads()
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("lost", ["heads.parquet", "curves.safetensors", "samples.parquet"])
def test_a_finished_trace_that_lost_a_file_is_traced_again(
    tiny: JanusModel, samples: Samples, tmp_path: Path, lost: str
) -> None:
    before = trace(tiny, samples, tmp_path / "t").heads()
    (tmp_path / "t" / lost).unlink()
    with pytest.warns(UserWarning, match=lost):
        again = trace(tiny, samples, tmp_path / "t", resume=True)
    assert again.damage() is None
    pd.testing.assert_frame_equal(again.heads(), before)


@pytest.mark.parametrize("facts", [[], None, 5, {}, {"complete": True}])
def test_a_strange_trace_json_is_one_sentence(tiny: JanusModel, samples: Samples, tmp_path: Path, facts: Any) -> None:
    (tmp_path / "trace.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"trace\.json: (lacks|holds)"):
        TraceDataset(tmp_path)
    with pytest.raises(DataError, match=r"trace\.json: (lacks|holds)"):
        trace(tiny, samples, tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_left_alone(tiny: JanusModel, samples: Samples, tmp_path: Path, resume: bool) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(DataError, match="is a file"):
        trace(tiny, samples, thesis, resume=resume)
    if resume:  # then it may lie there, and stays
        trace(tiny, samples, tmp_path, resume=True)
        assert TraceDataset(tmp_path).meta["complete"]
    else:
        with pytest.raises(DataError, match=r"holds other files \(thesis\.txt\)"):
            trace(tiny, samples, tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    assert thesis.read_text() == "years of work"


def test_images_in_a_pass_do_not_change_the_statistics(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    one = trace(tiny, samples, tmp_path / "one", batch_size=1).heads()
    three = trace(tiny, samples, tmp_path / "three", batch_size=3).heads()
    pd.testing.assert_frame_equal(one, three, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="batch_size 0"):
        trace(tiny, samples, tmp_path / "none", batch_size=0)


def test_filters_read_only_what_is_asked_for(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    dataset = trace(tiny, samples, tmp_path / "t", selection=Selection(band_count=2))
    table = dataset.heads(columns=["entropy"], layer=1, head=[0, 3], stream="conditional")
    assert list(table.columns) == [*KEYS, "entropy"]
    assert set(zip(table["layer"], table["head"], strict=True)) == {(1, 0), (1, 3)}
    everything = dataset.heads(band=None)
    assert sorted(everything["band"].unique()) == [-1, 0, 1]
    picked = everything.query("band == -1 and layer == 1 and head in (0, 3) and stream == 'conditional'")
    assert picked["entropy"].tolist() == table["entropy"].tolist()
    with pytest.raises(DataError, match=r"no column entropi; there are sample, stream"):
        dataset.heads(columns=["entropi"])


def test_words_share_out_the_prefix_mass(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    dataset = trace(tiny, samples, tmp_path / "t")
    words = dataset.words(layer=1)
    assert words.query("sample == 2 and head == 0")["text"].tolist()[1:-1] == [
        "a",
        "blue",
        "car",
        "on",
        "a",
        "red",
        "background",
    ]
    table = dataset.heads(stream="conditional", layer=1).set_index(["sample", "head"])["prefix_mass"]
    sums = words.groupby(["sample", "head"])["mass"].sum()
    assert sums.to_numpy() == pytest.approx(table.loc[sums.index].to_numpy(), abs=1e-5)


def test_curves_of_another_form_are_refused(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    dataset = trace(tiny, samples.select([0]), tmp_path / "t")
    file = tmp_path / "t" / "curves.safetensors"
    curves = load_file(file)
    save_file({**curves, "lag_mass": curves["lag_mass"].reshape(4, 2, 16)}, file)
    with pytest.raises(DataError, match=r"lag_mass.*\(4, 2, 16\), expected \(2, 4, 16\)"):
        dataset.curves()
    save_file({**curves, "lag_mass": curves["lag_mass"].int()}, file)
    with pytest.raises(DataError, match=r"lag_mass.*I32"):
        dataset.curves()


@pytest.mark.parametrize("column", ["sample", "layer", "head"])
def test_rows_of_what_was_not_traced_are_refused(tiny: JanusModel, samples: Samples, tmp_path: Path, column: str) -> None:
    dataset = trace(tiny, samples.select([0]), tmp_path / "t")
    table = dataset.heads()
    table.loc[3, column] = 2**40
    table.to_parquet(tmp_path / "t" / "heads.parquet", index=False)
    with pytest.raises(DataError, match=rf"{column} 0 to {2**40}, expected 0 to"):
        dataset.heads()


def test_images_that_the_model_cannot_have_drawn_are_refused(tiny: JanusModel, samples: Samples, tmp_path: Path) -> None:
    tokens = samples.tokens.clone()
    tokens[1, 3] = 16
    with pytest.raises(DataError, match="code 16, expected 0 to 15"):
        trace(tiny, replace(samples, tokens=tokens), tmp_path / "t")
    with pytest.raises(DataError, match=r"tokens \(3, 15\), expected \(3, 16\)"):
        trace(tiny, replace(samples, tokens=tokens[:, :15]), tmp_path / "t")
    assert not (tmp_path / "t").exists()
