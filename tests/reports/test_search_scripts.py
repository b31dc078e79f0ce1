"""The scripts that measure searches, on a tiny model: each table has its columns, and says what the search would find."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from headscope.errors import BudgetError, DataError
from headscope.models import ImageModel
from headscope.policy import Policy, load_policy
from tests.cli.command import headscope, left_by_an_overwrite
from tests.reports.scripts import REPORTS, functions, script

COLUMNS = {path.stem: list(pd.read_csv(path).columns) for path in (REPORTS / "stickers").glob("*.csv")}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path) -> Path:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\ndog\nblue car\nred car\nblue dog\nred dog\n")
    for words in (("trace", tiny_folder, "--out", tmp_path / "run", "--prompts", prompts), ("heads", tmp_path / "run")):
        ended = headscope(capsys, monkeypatch, *words)
        assert ended.status == 0, ended.err
    return tmp_path / "run"


@pytest.fixture
def made(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`made("tables", RUN, ...)`: the table that the script writes."""

    def make(name: str, *arguments: object) -> pd.DataFrame:
        out = tmp_path / f"{name}.csv"
        ended = script(capsys, monkeypatch, f"stickers/{name}.py", *arguments, "-o", out)
        assert ended.status == 0, ended.err
        return pd.read_csv(out)

    return make


def test_kinds_of_tables(made, run: Path) -> None:
    table = made("tables", run, "--keep", "80,60%")
    assert list(table.columns) == COLUMNS["tables"]
    assert list(table["budget"]) == [0.8] * 3 + [0.6] * 3
    assert list(table["table"]) == ["heads", "groups", "coverage"] * 2
    assert (table["replay_kl"] >= 0).all()
    assert table["cells"].iloc[0] > table["cells"].iloc[1] > table["cells"].iloc[2] == 0


def test_samplers_at_equal_trials(made, run: Path, tmp_path: Path) -> None:
    asked = ("samplers", run, "--keep", "60%", "--sampler", "tpe", "--sampler", "random", "--trials", 4, "--seeds", 1)
    table = made(*asked)
    names = ["budget", "method", "sampler", "seed", "prune", "trial", "best_kl", "seconds"]
    assert list(table.columns) == names
    assert set(COLUMNS["samplers"]) <= set(names)
    curves = table.groupby(["method", "sampler", "seed"])
    assert curves["trial"].max().eq(4).all()
    assert len(curves) == 4
    assert curves["best_kl"].apply(lambda kl: kl.is_monotonic_decreasing).all()
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    pd.testing.assert_frame_equal(made(*asked), table)  # studies are kept: nothing is proposed again
    assert left_by_an_overwrite(run, tmp_path) == []


def test_the_search_against_every_preset(made, run: Path, tmp_path: Path) -> None:
    table = made("search", run, "--keep", "0.6", "--trials", 4, "--seeds", 1, "--table-images", 2)
    assert list(table.columns) == COLUMNS["search"]
    own, table = table[table["budget"] != 0.6].set_index("method"), table[table["budget"] == 0.6].set_index("method")
    assert set(own.index) == {"full", "full_bfloat16", "kivi"}
    assert own.loc["full", "replay_kl"] == pytest.approx(0, abs=1e-5)
    assert 0 < own.loc["full_bfloat16", "replay_kl"] < 0.1
    presets = [name for name in ("streaming", "h2o", "pyramid", "ssd", "linear_ar", "h2o+bits") if name in table.index]
    assert {"streaming", "h2o", "ssd", "solver", "solver16", "searched16", "swapped", "searched"} <= set(table.index)
    assert table.loc["searched", "calibration_kl"] <= table.loc[presets, "calibration_kl"].min()
    assert table.loc["searched16", "bits"] == "16"
    assert (run / "bench" / "keep-60" / "searched-0.safetensors").is_file()
    assert left_by_an_overwrite(run, tmp_path) == []


def test_policies_are_shipped_with_what_was_measured(made, run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    made("search", run, "--keep", "0.6", "--trials", 1, "--seeds", 1, "--table-images", 1)
    ended = script(capsys, monkeypatch, "stickers/ship.py", run, "--table", tmp_path / "search.csv", "-o", tmp_path / "shipped")
    assert ended.status == 0, ended.err
    (file,) = (tmp_path / "shipped").glob("*.safetensors")
    row = pd.read_csv(tmp_path / "search.csv").query("method == 'searched'").iloc[0]
    policy, card = load_policy(file), file.with_suffix(".md").read_text()
    assert policy.results["unseen"]["replay_kl"] == pytest.approx(row["replay_kl"], rel=1e-4)
    assert f"{row['replay_kl']:.4f} nats a token" in card
    assert f"{policy.limit.bytes:,} bytes" in card


def test_the_joint_loss_beside_the_sum(made, run: Path) -> None:
    table = made("joint", run, "--keep", "60,80%", "--policies", 3, "--images", 1, "--replayed", 1)
    assert list(table.columns) == ["keep", "noise", "sum", "joint", "calibration_kl", "unseen_kl"]
    assert list(table["noise"].iloc[3:]) == ["sum", "joint"] * 2
    chosen = table.iloc[3:].set_index(["keep", "noise"])["joint"]
    assert all(chosen[keep, "joint"] <= chosen[keep, "sum"] * 1.001 for keep in (0.6, 0.8))
    assert (table[["sum", "joint", "calibration_kl", "unseen_kl"]] >= -1e-9).all(axis=None)


def test_more_kinds_of_heads_and_what_replay_costs(made, run: Path) -> None:
    table = made("buckets", run, "--keep", "0.6,0.8")
    assert list(table.columns) == COLUMNS["buckets"]
    assert list(table["budget"]) == [0.6] * 5 + [0.8] * 5
    assert (table["used"] <= table["buckets"]).all()
    table = made("replay", run, "--keep", "60%", "--images", 1)
    assert list(table.columns) == COLUMNS["replay"]
    assert (table["images"] == 1).all()


def test_kinds_of_scores_and_forms_of_their_tables(made, run: Path, tiny: ImageModel, tmp_path: Path) -> None:
    policy = Policy.uniform(tiny.shape, window=1, heavy=4, stride=4, prefix=12)
    table = made("scores", run, "--policies", policy.save(tmp_path / "p.safetensors"), "--images", 2)
    assert list(table.columns) == ["policy", "form", "bytes", "share", "unseen_kl", "difference_low", "difference_high"]
    assert list(table["form"][:2]) == ["received", "value"]
    losses = table.set_index("form")["unseen_kl"]
    assert losses["rank 4, every row, 8 bits"] == pytest.approx(
        losses["every row, 32 bits"], rel=0.2
    )  # four rows are of rank 4
    assert losses["every row, 32 bits"] != losses["received"]


def test_what_cannot_be_measured_is_one_sentence(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = script(capsys, monkeypatch, "stickers/search.py", tmp_path / "nowhere")
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert "no run.json" in ended.err


@pytest.mark.parametrize("keep", ["50,20%", "50%, 20%", "0.5,0.2"])
def test_a_share_is_read_alike_however_it_is_written(monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    setup = functions(monkeypatch, "stickers/bench_setup.py")
    assert setup.shares(keep) == [0.5, 0.2]
    assert setup.Setup.folder(SimpleNamespace(out=Path("bench")), 0.2).name == "keep-20"
    with pytest.raises(BudgetError):
        setup.shares("120%")


@pytest.mark.parametrize("kept", ["[]", '{"a": null}', '{"a": {"kl": 1, "top1": 1, "cache_bytes": 1, "by_image": [1]}}'])
def test_losses_that_a_script_kept_are_of_its_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: str) -> None:
    read_losses = functions(monkeypatch, "stickers/bench_setup.py").read_losses
    (tmp_path / "unseen.json").write_text(kept)
    with pytest.raises(DataError, match=r"unseen\.json: .*expected"):
        read_losses(tmp_path / "unseen.json", 2)
    good = {"a": {"kl": 1.0, "top1": 0.5, "cache_bytes": 7, "by_image": [0.5, 1.5]}}
    (tmp_path / "unseen.json").write_text(json.dumps(good))
    assert read_losses(tmp_path / "unseen.json", 2) == good
    (tmp_path / "unseen.json").write_text(json.dumps(good).replace("1.5", "NaN"))
    with pytest.raises(DataError, match=r"unseen\.json: .*expected a list of 2 finite numbers"):
        read_losses(tmp_path / "unseen.json", 2)
