"""`headscope bench` on a tiny model: each table has its columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from headscope.benchmarks.generating import COLUMNS, bench_generate
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


def test_whole_images_with_generate_and_with_ours() -> None:
    table = pd.DataFrame(bench_generate("tiny", [2], dtype="float32", device="cpu", repeats=1))
    assert list(table["variant"]) == ["generate", "full", "20"]
    assert list(table.columns) == COLUMNS
    assert table["cache_bytes"].iloc[2] <= 0.2 * table["cache_bytes"].iloc[0]
    assert (table["tokens_s"] > 0).all()


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
