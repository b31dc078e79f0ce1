"""A trace is a folder that survives a stop, names what is damaged, and refuses what is not its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
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
from headscope.tracing import Selection, TraceDataset, merge_traces, trace
from headscope.tracing.files import KEYS


@pytest.fixture(scope="module")
def samples(tiny: JanusModel) -> Samples:
    return generate(tiny, ["red apple", "dog", "a blue car on a red background"], 0)


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
    assert seen == [2, 3]  # one part was whole
    pd.testing.assert_frame_equal(resumed.heads(), whole)


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


def stopped(model: JanusModel, samples: Samples, out: Path) -> Path:
    """A trace that was stopped after its first image."""

    def stop(task: str, done: int, total: int, note: str = "") -> None:
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
    assert seen == [2, 3]


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
    assert seen[0] > told  # what it said was done is done
    assert seen[0] < 60
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
    assert seen == [2, 3]


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
