"""The page of a run whose files are missing, damaged or another model's: a sentence for each."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.policy import load_policy
from headscope.reporting import write_report
from tests.reporting.parsed_page import page_of
from tests.reporting.run_folder import SECTIONS, make_run

MODEL = '{"name": "x", "layers": 1, "query_heads": 1, "kv_heads": 1, "geometry": {"rows": 1, "cols": 1}}'


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("heads.safetensors", "There are no classes: the heads step has not run."),
        ("trace", "The heads are not shown: the trace is missing or unfinished."),
        ("search", "There are no trials: the search step has not run."),
        ("policy.safetensors", "There is no policy to use: the search step has not run."),
        ("methods.csv", "There is no comparison: the compare step has not run."),
        ("kl_by_row.parquet", "The loss by row of the image was not written."),
        ("images", "There are no images: the generate step has not run."),
    ],
)
def test_a_missing_file_leaves_its_section_out_with_a_sentence(run: Path, file: str, sentence: str) -> None:
    assert sentence not in page_of(run).said
    shutil.rmtree(run / file) if (run / file).is_dir() else (run / file).unlink()
    assert sentence in page_of(run).said


@pytest.mark.usefixtures("plain_figures")
def test_images_of_another_policy_are_left_out_with_a_sentence(run: Path) -> None:
    file, sentence = run / "images" / "images.parquet", "of another policy than the one that stands here now"
    images, own = pd.read_parquet(file), load_policy(run / "policy.safetensors").fingerprint()
    assert "policy" not in images  # as earlier versions wrote it
    for given, shown in ((images, True), (images.assign(policy=own), True), (images.assign(policy="0" * 64), False)):
        given.to_parquet(file, index=False)
        page = page_of(run)
        assert ("img" in {tag for tag, _ in page.tags}) == shown
        assert (sentence in page.said) != shown


@pytest.mark.usefixtures("plain_figures")
def test_a_run_that_has_only_begun_has_a_page(run: Path) -> None:
    for file in (*SECTIONS, "prompts.json"):
        shutil.rmtree(run / file) if (run / file).is_dir() else (run / file).unlink()
    page = page_of(run)
    assert "drawn: run begun, nothing searched yet." in page.said
    assert page.said.count("has not run") >= 6


@pytest.mark.usefixtures("plain_figures")
def test_a_trace_that_was_stopped_is_left_out(run: Path) -> None:
    meta = json.loads((run / "trace" / "trace.json").read_text())
    (run / "trace" / "trace.json").write_text(json.dumps({**meta, "complete": False}))
    assert "the trace is missing or unfinished" in page_of(run).said


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"model": "name"}',
        '{"model": {"name": "x"}}',
        '{"model": {"name": "x", "layers": 0, "query_heads": 1, "kv_heads": 1, "geometry": {"rows": 1, "cols": 1}}}',
        '{"model": {"name": "x", "layers": 1, "query_heads": 1, "kv_heads": 1, "geometry": [1, 1]}}',
        '{"limit": {"text": "20%"}, "model": ' + MODEL + "}",
        '{"steps": 3, "model": ' + MODEL + "}",
    ],
)
def test_a_damaged_run_json_is_refused_in_a_sentence_and_no_page_is_written(tmp_path: Path, damage: str) -> None:
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(DataError, match=r"run\.json.*\.$") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("plain_figures")
def test_the_least_that_run_json_may_say_makes_a_page(tmp_path: Path) -> None:
    model = {"name": "x", "layers": 1, "query_heads": 1, "kv_heads": 1, "geometry": {"rows": 1, "cols": 1}}
    (tmp_path / "run.json").write_text(json.dumps({"model": model}))
    assert "x: run begun, nothing searched yet." in page_of(tmp_path).said


@pytest.mark.usefixtures("plain_figures")
def test_a_folder_without_run_json_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json here"):
        write_report(tmp_path)


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(
    "file",
    [
        "heads.safetensors",
        "policy.safetensors",
        "methods.csv",
        "kl_by_row.parquet",
        "search/trials.parquet",
        "search/search.json",
        "trace/curves.safetensors",
        "images/images.parquet",
        "images/full/001.png",
        "prompts.json",
    ],
)
def test_a_cut_file_is_named_and_the_page_of_before_stays(run: Path, file: str) -> None:
    before = write_report(run).read_bytes()
    (run / file).write_bytes((run / file).read_bytes()[:9])
    with pytest.raises(DataError, match=re.escape(Path(file).name)):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("file", ["heads.safetensors", "policy.safetensors", "trace"])
def test_a_file_of_another_model_is_refused(run: Path, tmp_path: Path, file: str) -> None:
    other = make_run(tmp_path / "other", layers=2)
    if (run / file).is_dir():
        shutil.rmtree(run / file)
        shutil.copytree(other / file, run / file)
    else:
        shutil.copy(other / file, run / file)
    with pytest.raises(DataError, match=file):
        write_report(run)


def test_writing_the_page_changes_no_other_file(run: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    write_report(run)
    after = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != "report.html"}
    assert before == after
