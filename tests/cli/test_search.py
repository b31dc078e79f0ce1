"""`headscope search` and `headscope budget` on a tiny model: every way to name a limit, and crews."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from headscope.policy import CacheSpec, load_policy
from headscope.storage import read_json
from tests.cli.command import headscope, left_by_an_overwrite


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("red apple\ndog\nblue car\nred car\nblue dog\nred dog\n")
    return file


@pytest.fixture
def run(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> Path:
    out = tmp_path / "run"
    assert command("trace", tiny_folder, "--out", out, "--prompts", prompts).status == 0
    assert command("heads", out).status == 0
    return out


def test_several_limits_at_once_and_each_again(command, run: Path) -> None:
    ended = command("search", run, "--keep", "75,60%", "--trials", 4, "--bits", 16)
    assert ended.status == 0, ended.err
    table = pd.read_csv(run / "budgets.csv")
    assert set(table.loc[table["method"] == "searched", "budget"]) == {"75%", "60%"}
    for keep in (75, 60):
        policy = load_policy(run / "policies" / f"keep-{keep}.safetensors")
        assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= keep / 100
        assert policy.limit is not None
        assert policy.limit.share == keep / 100
        assert policy.results["unseen"]["replay_kl"] >= 0
    before = read_json(run / "search" / "keep-60" / "search.json")["best"]
    assert command("search", run, "--keep", "75%, 60%", "--trials", 4, "--bits", 16).status == 0
    assert read_json(run / "search" / "keep-60" / "search.json")["best"] == before
    assert left_by_an_overwrite(run, run.parent) == []


def test_one_run_takes_one_limit_after_the_other(command, run: Path) -> None:
    assert command("search", run, "--keep", "75%", "--trials", 3, "--bits", 16).status == 0
    assert command("search", run, "--keep", "60%", "--trials", 3, "--seed", 2, "--bits", 16).status == 0
    assert read_json(run / "run.json")["limit"]["text"] == "60%"


def test_a_limit_for_another_machine_counts_its_cache(command, run: Path) -> None:
    asked = ("--memory", "3KiB", "--batch", 2, "--dtype", "bf16", "--no-guidance", "--trials", 3, "--bits", 16)
    ended = command("search", run, *asked)
    assert ended.status == 0, ended.err
    policy = load_policy(run / "policy.safetensors")
    assert policy.limit is not None
    spec = CacheSpec(policy.shape, policy.prefix, batch=2, streams=1, dtype="bfloat16")
    assert (policy.limit.bytes, policy.limit.spec) == (3 * 1024, spec)
    assert spec.bytes_of(policy) <= 3 * 1024


def test_the_smallest_cache_for_a_loss(command, run: Path) -> None:
    ended = command("search", run, "--max-loss", "0.3", "--trials", 3, "--bits", 16)
    assert ended.status == 0, ended.err
    steps = pd.read_csv(run / "smallest.csv")
    good = steps[steps["good"]]
    assert (good[["calibration", "unseen"]].max(axis=1) <= 0.3).all()
    assert f"smallest: {good['keep'].min():.1%}" in ended.out
    assert command("search", run, "--max-loss", "0.3", "--keep", "50%").status == 2


def test_a_front_gives_a_policy_for_each_share(command, run: Path) -> None:
    ended = command("search", run, "--front", "--keep", "80,60%", "--trials", 6)
    assert ended.status == 0, ended.err
    assert (run / "front.svg").read_text().lstrip().startswith(("<?xml", "<svg"))
    for keep in (80, 60):
        policy = load_policy(run / "policies" / f"front-{keep}.safetensors")
        assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= keep / 100
        assert policy.limit is not None
        assert policy.limit.share == keep / 100
    assert left_by_an_overwrite(run, run.parent) == []


def test_three_processes_make_the_trials_of_one_study(command, run: Path) -> None:
    ended = command("search", run, "--keep", "70%", "--trials", 12, "--bits", 16, "--workers", 3)
    assert ended.status == 0, ended.err
    trials = pd.read_parquet(run / "search" / "trials.parquet")
    assert trials["label"].fillna("").str.endswith("trial").sum() >= 12
    assert (run / "search" / "study.journal").is_file()
    assert left_by_an_overwrite(run, run.parent) == []
    refused = command("search", run, "--keep", "70%", "--workers", 2, "--storage", run / "mine.db")
    assert refused.status == 2
    assert "for one process" in refused.err


def test_a_definition_is_run_and_continued(command, tiny_folder: Path, tmp_path: Path, prompts: Path) -> None:
    def defined(name: str, keep: str) -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f'model = "{tiny_folder}"\npolicy = "{name}.safetensors"\n[limit]\nkeep = "{keep}"\n'
            f'[prompts]\nfile = "{prompts}"\ncalibration = 3\nunseen = 3\n[search]\ntrials = 4\nbits = 16\n'
        )
        return file

    out = tmp_path / "made"
    first = command("search", defined("small", "60%"), "--out", out)
    assert first.status == 0, first.err
    small = load_policy(out / "policies" / "small.safetensors")
    assert command("search", defined("large", "80%"), "--out", out).status == 0  # shares the trace
    anew = command("search", defined("small", "60%"), "--out", tmp_path / "anew")
    assert anew.status == 0
    assert load_policy(tmp_path / "anew" / "policies" / "small.safetensors").same_as(small)
    assert left_by_an_overwrite(out, tmp_path) == []
    wrong = defined("wrong", "60%")
    wrong.write_text(wrong.read_text().replace("unseen = 3", "unseen = 30"))
    ended = command("search", wrong, "--out", tmp_path / "none")
    assert ended.status == 2
    assert "prompts.unseen: asks for 30, there are 3 of 6 prompts" in ended.err


def test_budget_says_what_fits(command, run: Path, tiny_folder: Path) -> None:
    assert command("search", run, "--keep", "60%", "--trials", 2, "--quick").status == 0
    policy = run / "policy.safetensors"
    ended = command("budget", tiny_folder, "--memory", "64KiB", "--batch", 8, "--policy", policy, "--prefix", 4)
    assert ended.status == 0, ended.err
    assert "A batch of 8 images may keep 80%.\nnext: headscope search RUN --keep 80%" in ended.out
    assert "policy" in ended.out
    shape, plain = load_policy(policy).shape, {}
    for dtype in ("float32", "bf16"):
        told = command("budget", tiny_folder, "--memory", "64KiB", "--prefix", 4, "--dtype", dtype)
        assert told.status == 0, told.err
        plain[dtype] = ["plain", "100.0%", f"{CacheSpec(shape, 4, dtype=dtype).full_bytes:,}"]
        assert plain[dtype] in [line.split()[:3] for line in told.out.splitlines()]
    assert plain["float32"] in [line.split()[:3] for line in ended.out.splitlines()]  # what runs here is counted


def test_a_table_of_groups_and_one_of_the_trace_alone(command, run: Path) -> None:
    told = {
        "heads": "sensitivity table: every head alone, ",
        "groups": "sensitivity table: the heads of a class in a layer together, ",
        "coverage": "sensitivity table: the trace alone, 0 cells in 0.0 s; one of every head (--table heads) would be ",
    }
    for kind, says in told.items():
        ended = command("search", run, "--keep", "60%", "--trials", 2, "--bits", 16, "--table", kind)
        assert ended.status == 0, ended.err
        assert says in ended.out
    assert left_by_an_overwrite(run, run.parent) == []
    refused = command("search", run, "--table", "layers")
    assert refused.status == 2
    assert "expected one of auto, heads, fisher, groups, coverage" in refused.err


def test_what_can_not_be_is_refused(command, run: Path) -> None:
    for arguments, says in (
        (("--sampler", "grid"), "expected one of tpe, gp, cma-es"),
        (("--engine", "spark"), "expected processes or ray"),
        (("--storage", "nosuch://host/x", "--keep", "60%"), "nosuch://host/x"),
        (("--keep", "75,3%"), "too small"),
        (("--keep", "60%", "--dtype", "float32"), "a share is counted in two bytes a number, not in float32"),
        (("--dtype", "fp32", "--front", "--keep", "80,60%"), "a share is counted in two bytes a number, not in float32"),
    ):
        ended = command("search", run, *arguments)
        assert ended.status == 2, arguments
        assert says in ended.err, ended.err
        assert "Traceback" not in ended.err
