"""The same search from the command line, from a TOML file and from Python is the same study."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
import pytest

import headscope
from headscope.pipeline.prompts import split
from tests.cli.command import headscope as command

PROMPTS = ["red apple", "dog", "blue car", "red car", "apple", "blue dog"]
TOLD = ["phase", "number", "state", "label", "kl", "top1", "cache_bytes", "images", "repeated", "error", "fingerprint"]


def from_the_command_line(model: Path, prompts: Path, out: Path, run) -> Path:  # type: ignore[no-untyped-def]
    assert run("trace", model, "--out", out, "--prompts", prompts, "--calibration", 3, "--unseen", 3).status == 0
    assert run("heads", out).status == 0
    asked = ("--keep", "50%", "--trials", 9, "--table-images", 2, "--buckets", 2, "--seed", 4, "--bits", "16,8")
    ended = run("search", out, *asked)
    assert ended.status == 0, ended.err
    return out / "search"


def from_toml(model: Path, prompts: Path, out: Path, run) -> Path:  # type: ignore[no-untyped-def]
    study = prompts.with_name("study.toml")
    study.write_text(
        f'model = "{model}"\n[limit]\nkeep = 0.5\n[prompts]\nfile = "{prompts.name}"\ncalibration = 3\nunseen = 3\n'
        "[search]\ntrials = 9\ntable_images = 2\nbuckets = 2\nseed = 4\nbits = [8, 16]\n"
    )
    ended = run("search", study, "--out", out)
    assert ended.status == 0, ended.err
    return out / "search"


def from_python(folder: Path, out: Path) -> headscope.SearchResult:
    model = headscope.load_model(str(folder))
    calibration, unseen = split(PROMPTS, 3, 3)
    samples = headscope.generate(model, calibration, 0)
    heads = headscope.classify(headscope.trace(model, samples, out / "trace"), model.shape)
    prefix = model.tokenize([*calibration, *unseen]).ids.shape[1]
    limit = headscope.Limit.parse(0.5, headscope.CacheSpec.of(model, prefix))
    config = headscope.SearchConfig(trials=9, table_images=2, buckets=2, seed=4, bits="16,8")
    return headscope.search(model, samples, heads.scores(), limit, out, config)


def test_the_same_search_by_three_doors_is_the_same_study(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object) -> object:
        return command(capsys, monkeypatch, *words)

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    folders = [
        from_the_command_line(tiny_folder, tmp_path / "prompts.txt", tmp_path / "line", run),
        from_toml(tiny_folder, tmp_path / "prompts.txt", tmp_path / "toml", run),
    ]
    found = from_python(tiny_folder, tmp_path / "python")
    policies = [headscope.load_policy(folder.parent / "policy.safetensors") for folder in folders]
    assert all(policy.same_as(found.policy) for policy in policies)
    assert all(policy.limit == found.policy.limit for policy in policies)
    numbers = [name for name in found.trials if name.startswith("number_")]
    assert len(found.trials) > 9
    for folder in folders:
        trials = pd.read_parquet(folder / "trials.parquet")
        pd.testing.assert_frame_equal(trials[TOLD + numbers], found.trials[TOLD + numbers])
        names = [optuna.get_all_study_names(f"sqlite:///{kept / 'study.db'}") for kept in (folder, tmp_path / "python")]
        assert names[0] == names[1]
