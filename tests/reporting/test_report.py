"""The report: one file that needs no network and says what the files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from headscope.reporting import write_report
from tests.reporting.parsed_page import page_of
from tests.reporting.run_folder import METHODS, PROMPTS, make_run

LOADING = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"}


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


def test_a_head_whose_attention_overflowed_is_drawn_empty(run: Path) -> None:
    curves = load_file(run / "trace" / "curves.safetensors")
    save_file({name: torch.full_like(value, torch.nan) for name, value in curves.items()}, run / "trace" / "curves.safetensors")
    assert not re.search(r'[" ]-?nan\b', page_of(run).text)


def test_the_same_files_make_the_same_page(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
