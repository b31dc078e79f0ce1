"""`headscope bench` on a tiny model: each table has its columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.cli.command import headscope


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: headscope(capsys, monkeypatch, *arguments)


def test_a_decoding_step_with_each_cache(command, tmp_path: Path) -> None:
    out = tmp_path / "decode.csv"
    ended = command("bench", "decode", "--shape", "tiny", "--batch", "2,3", "--rows", 2, "-o", out)
    assert ended.status == 0, ended.err
    table = pd.read_csv(out)
    kinds = ["dynamic", "static", "full", "50", "20", "10", "20_semantic", "20_mixed", "20_at_8", "20_at_4", "floor"]
    assert list(table["variant"]) == kinds * 4
    columns = ["dtype", "batch", "variant", "ms_step", "ms_last_row", "tokens_s", "cache_bytes", "peak_mb", "limit_share"]
    assert list(table.columns[:9]) == columns
    assert (table["ms_step"] > 0).all()
    one = table[(table["dtype"] == "float32") & (table["batch"] == 3)].set_index("variant")["cache_bytes"]
    assert (
        one["dynamic"] == 3 * 2 * 2 * (2 + 63) * 2 * 16 * 4
    )  # layers, KV heads, all tokens but the last, K and V, size, bytes
    for name, share in (("50", 0.5), ("20", 0.2), ("10", 0.1), ("20_semantic", 0.2), ("20_mixed", 0.2)):
        assert one[name] <= share * one["static"]
    assert one["20"] > one["20_at_8"] > one["20_at_4"]
    assert "20 % is" in ended.out
    assert (table["ms_least"] <= table["ms_median"]).all()
    assert "expected one of laptop" in command("bench", "decode", "--shape", "huge").err


def test_a_dry_run_makes_a_folder_and_a_folder_makes_a_page(command, tmp_path: Path) -> None:
    out = tmp_path / "results"
    ended = command("bench", "decode", "--dry", "--steps", "card,more", "--out", out)
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in out.iterdir()) == ["decode.csv", "results.jsonl", "run.json"]
    assert "its times mean nothing" in ended.out
    table = pd.read_csv(out / "decode.csv")
    assert list(table["variant"]) == ["20", "full"]
    assert (table["decoder"] == "llama_cuda").all()
    ended = command("bench", "decode", "--render", out, "-o", tmp_path / "reports" / "dry.csv")
    assert ended.status == 0, ended.err
    assert pd.read_csv(tmp_path / "reports" / "dry.csv").equals(table)
    page = (tmp_path / "reports" / "dry.html").read_text(encoding="utf-8")
    assert "Tokens a second: dry" in page
    assert "<svg" in page
    assert "src=" not in page  # all of it is in the file


def test_steps_that_can_not_be_are_refused(command, tmp_path: Path) -> None:
    assert "no such step" in command("bench", "decode", "--dry", "--steps", "cards", "-o", tmp_path / "a").err
    assert "only with --device cuda" in command("bench", "decode", "--device", "cpu", "--budget", 9).err
    assert "not there; measure first" in command("bench", "decode", "--render", tmp_path).err
    assert "one at a time" in command("bench", "decode", "--dry", "--batch", "1,2").err
    assert "a folder, with --device cpu" in command("bench", "decode", "--dry", "-o", tmp_path / "a.csv").err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(command) -> None:
    ended = command("bench", "decode", "--device", "cuda", "--shape", "tiny")
    assert ended.status == 2
    assert "error: device cuda: not usable here" in ended.err


def test_a_table_that_cannot_be_written_is_told_before_anything_is_measured(command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "decode.csv", tmp_path):
        ended = command("bench", "decode", "--shape", "tiny", "-o", out)
        assert ended.status == 2
        assert "error: " in ended.err
        assert ended.err.strip().startswith("error: ")  # no bar before it
    ended = command("bench", "decode", "--device", "cuda", "--dtype", "float32,bfloat16", "-o", tmp_path / "d.csv")
    assert "one at a time" in ended.err
