"""The report: one file that needs no network, says what the files say, and says plainly what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.reporting import write_report
from tests.reporting.run_folder import METHODS, PROMPTS, SECTIONS, make_run

MODEL = '{"name": "x", "layers": 1, "query_heads": 1, "kv_heads": 1, "geometry": {"rows": 1, "cols": 1}}'
VOID = {"meta", "img", "br", "path", "rect", "circle"}
LOADING = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"}


class Page(HTMLParser):
    """Collects what a test asks of a page; raises where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.words = text, list[str](), list[tuple[str, dict[str, str | None]]](), list[str]()
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)
        if self.rows and "table" in self.open:
            self.rows[-1][-1:] = [self.rows[-1][-1] + data] if self.rows[-1] else []

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words).replace("\u00a0", " "))


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not written as SVG, which takes most of the time of a page."""
    monkeypatch.setattr(
        "headscope.reporting.page.svg", lambda figure: f"<svg aria-label={quoteattr(figure.get_label())}></svg>"
    )


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_the_page_loads_nothing_from_anywhere(run: Path) -> None:
    page = page_of(run)
    loaded = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name in LOADING]
    assert loaded, "the images are in the page"
    assert all(value.startswith(("data:image/", "#")) for value in loaded), loaded
    assert not re.findall(r"url\s*\((?!['\"]?data:|#)|@import|https?://", page.text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_a_page_of_a_large_model_with_many_large_images_stays_under_six_megabytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", side=24, layers=30, kv_heads=32, group=1, pixels=384, prompts=[str(n) for n in range(70)])
    page = page_of(run)
    assert len(page.text.encode()) < 6e6
    assert "6 more stand in the folder images" in page.said


@pytest.mark.usefixtures("plain_figures")
def test_every_loss_of_the_table_of_methods_stands_on_the_page_beside_its_method(run: Path) -> None:
    rows = {row[0].strip(): row for row in page_of(run).rows if row and row[0] in METHODS}
    assert list(rows) == ["full", "searched", "h2o", "streaming", "linear_ar", "pyramid", "ssd"]
    for method in pd.read_csv(run / "methods.csv").to_dict("records"):
        shown = rows[method["method"]]
        loss = method["replay_kl"]
        assert shown[1].startswith(f"{loss:.4f}" if loss else "0")
        assert f"{100 * method['top1']:.1f}\u00a0%" == shown[2].strip()
        assert shown[-1].strip() == (method["variant"] if isinstance(method["variant"], str) else "")


@pytest.mark.usefixtures("plain_figures")
def test_a_searched_policy_that_wins_is_said_in_the_headline_with_its_figures(run: Path) -> None:
    page = page_of(run)
    agreement = pd.read_parquet(run / "images" / "images.parquet")["token_agreement"].mean()
    assert f"A fifth of the cache, KL 0.012 nats a token, {100 * agreement:.0f} % of the tokens the same." in page.said
    assert "loses 47 % less than the best known method, h2o" in page.said  # 1 - .01234 / .02345


@pytest.mark.usefixtures("plain_figures")
def test_a_searched_policy_that_loses_is_said_in_the_headline(tmp_path: Path) -> None:
    said = page_of(make_run(tmp_path / "run", searched=0.03)).said
    assert "A fifth of the cache, but h2o does better: KL 0.0234 against 0.0300 nats a token." in said
    assert "The searched policy does not win here" in said


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("searched", [0.0230, 0.0239])
def test_a_difference_within_the_noise_is_said_whoever_is_ahead(tmp_path: Path, searched: float) -> None:
    assert "within the noise" in page_of(make_run(tmp_path / "run", searched=searched)).said


@pytest.mark.usefixtures("plain_figures")
def test_a_clear_difference_is_not_called_noise(run: Path) -> None:
    assert "noise" not in page_of(run).said


@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize(
    ("ms", "sentence"),
    [
        ((10.0, 20.0), "It saves memory, not time, on this machine and at this batch: a step takes 20.0 ms against 10.0 ms"),
        ((10.0, 5.0), "A step is quicker, too: 5.0 ms against 10.0 ms"),
        ((10.0, 10.2), "A step takes as long as before: 10.2 ms against 10.0 ms"),
    ],
)
def test_what_a_step_takes_is_said_also_where_it_takes_longer(tmp_path: Path, ms: tuple[float, float], sentence: str) -> None:
    assert sentence in page_of(make_run(tmp_path / "run", ms=ms)).said


@pytest.mark.usefixtures("plain_figures")
def test_steps_that_were_not_timed_are_not_given_a_figure(run: Path) -> None:
    methods = pd.read_csv(run / "methods.csv").assign(ms_per_step=np.nan)
    methods.to_csv(run / "methods.csv", index=False)
    page = page_of(run)
    assert "a step takes" not in page.said.lower()
    assert all(row[-2].strip() == "not timed" for row in page.rows if row and row[0] in METHODS)


@pytest.mark.usefixtures("plain_figures")
def test_a_dry_run_boasts_of_nothing(run: Path) -> None:
    facts = json.loads((run / "search" / "search.json").read_text())
    (run / "search" / "search.json").write_text(json.dumps({**facts, "quick": True}))
    said = page_of(run).said
    assert "This was a dry run" in said
    assert "less than the best known method" not in said


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
def test_prompts_are_shown_as_they_are_and_run_nothing(run: Path) -> None:
    page = page_of(run)
    assert PROMPTS[2] in page.said
    assert "script" not in {tag for tag, _ in page.tags}
    assert any(attributes.get("alt") == f"{PROMPTS[2]}, generated with the policy" for _, attributes in page.tags)


@pytest.mark.usefixtures("plain_figures")
def test_names_that_would_break_a_page_or_a_command_are_quoted(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["model"] |= {"name": "<b>name", "source": 'my "models"/it\'s; rm'}
    (run / "run.json").write_text(json.dumps(facts))
    page = page_of(run)
    assert "b" not in {tag for tag, _ in page.tags[: page.tags.index(("dl", {"class": "figures"}))]}
    assert """headscope generate 'my "models"/it'"'"'s; rm' --policy""" in page.said
    source = re.search(r"load_model\((.*?)\)\s+policy =", page.said)
    assert source is not None
    assert eval(source.group(1)) == facts["model"]["source"]


def test_images_figures_and_tables_can_be_heard(run: Path) -> None:
    page = page_of(run)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    assert page.tags[1] == ("html", {"lang": "en"}) or page.tags[0] == ("html", {"lang": "en"})


@pytest.mark.usefixtures("plain_figures")
def test_each_preset_is_said_to_be_swept_on_the_images_that_the_search_used(run: Path) -> None:
    assert "on the 3 calibration images that the search used" in page_of(run).said  # of 4 that were recorded


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


def test_a_head_whose_attention_overflowed_is_drawn_empty(run: Path) -> None:
    curves = load_file(run / "trace" / "curves.safetensors")
    save_file({name: torch.full_like(value, torch.nan) for name, value in curves.items()}, run / "trace" / "curves.safetensors")
    assert not re.search(r'[" ]-?nan\b', page_of(run).text)


def test_the_same_files_make_the_same_page(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_writing_the_page_changes_no_other_file(run: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    write_report(run)
    after = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != "report.html"}
    assert before == after
