"""What a page says of how far to trust the classes: stability, needs, controls, margins."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.heads import Heads
from headscope.reporting import write_report
from headscope.reporting.data import read_run
from tests.reporting.parsed_page import page_of
from tests.reporting.run_folder import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def stability(folder: Path, rand: list[float]) -> None:
    rows = [("prompts", str(2**n), value, value - 0.1, value + 0.02, 0.96, 0.95, 0.97, 20) for n, value in enumerate(rand)]
    names = ["what", "value", "rand", "rand_low", "rand_high", "rank", "rank_low", "rank_high", "draws"]
    pd.DataFrame([*rows, ("seeds", "all", 1, 1, 1, 1, 1, 1, 10)], columns=names).to_csv(folder / "stability.csv", index=False)


def ablation(folder: Path) -> None:
    rows = [
        {"keep": keep, "layer": layer, "kv_head": head, "class": "spatial" if head < 2 else "semantic",
         "semantic_score": head / 4, "window": 0.1, "heavy": 0.3 - 0.1 * head, "both": 0.05, "heavy_preference": head / 4 - 0.5}
        for keep in ("30%", "20%") for layer in range(3) for head in range(4)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "ablation.csv", index=False)
    facts = json.loads((folder / "run.json").read_text())
    facts["ablation"] = {"stride": 1, "20%": {"correlation": 0.84, "low": 0.74, "high": 0.89}}
    (folder / "run.json").write_text(json.dumps(facts))


def test_agreement_and_needs_are_drawn_where_they_were_measured(run: Path) -> None:
    assert "Can the classes be trusted?" not in page_of(run).said
    stability(run, [0.6, 0.8, 0.92, 0.95])
    ablation(run)
    page = page_of(run)
    assert "Can the classes be trusted?" in page.said
    assert "From 4 prompts on two disjoint sets agree" in page.said
    assert "Each head alone at 30%" in page.said
    assert "Rank correlation with the semantic score 0.84, 0.74 to 0.89 (95 %)" in page.said
    assert page.text.count("layer 2 head 3: window loses 0.1000, heavy tokens") == 2  # a dot a head and budget


@pytest.mark.usefixtures("plain_figures")
def test_prompts_that_are_too_few_are_said_to_be(run: Path) -> None:
    stability(run, [0.3, 0.5])
    assert "Two sets of 2 prompts do not agree well enough yet" in page_of(run).said


@pytest.mark.parametrize("file", ["stability.csv", "ablation.csv"])
def test_a_table_without_its_columns_is_named(run: Path, file: str) -> None:
    (run / file).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"{file}: has no column"):
        write_report(run)


@pytest.mark.parametrize("file", ["stability.csv", "ablation.csv"])
def test_a_number_that_is_none_is_named(run: Path, file: str) -> None:
    stability(run, [0.6, 0.8])
    ablation(run)
    table = pd.read_csv(run / file).astype(object)
    column = {"stability.csv": "rand", "ablation.csv": "window"}[file]
    table.loc[1, column] = "much"
    table.to_csv(run / file, index=False)
    with pytest.raises(DataError, match=f"{file}: row 2 has {column} .*expected a number"):
        write_report(run)


def test_needs_stand_beside_the_classes_that_stand_now(run: Path) -> None:
    ablation(run)
    heads = Heads.load(run / "heads.safetensors")
    Heads(heads.table.assign(**{"class": "semantic", "semantic_score": 0.75}), heads.meta).save(run / "heads.safetensors")
    data = read_run(run)
    assert data.ablation is not None
    assert set(data.ablation["class"]) == {"semantic"}
    assert (data.ablation["semantic_score"] == 0.75).all()


@pytest.mark.usefixtures("plain_figures")
def test_margins_that_differ_less_are_told_on_the_page(run: Path) -> None:
    file = run / "trace" / "curves.safetensors"
    values = torch.ones(3, 4, 8, 8)
    values[..., 0] = values[..., -1] = 0.5
    save_file({**load_file(file), "cache_divergence": values.flatten(2)[..., :-1].contiguous()}, file)
    assert "The margin columns carry less of the prompt than the others here" in page_of(run).said
