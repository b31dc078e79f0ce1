"""The script that measures transfers, on a tiny model: its table has its columns, and goes on with what was measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.command import headscope
from tests.reports.scripts import REPORTS, script


def test_a_pair_by_each_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    prompts, run, out = tmp_path / "prompts.txt", tmp_path / "run", tmp_path / "transfer.csv"
    prompts.write_text("red apple\ndog\nblue car\nred car\nblue dog\nred dog\n")
    for words in (("trace", tiny_folder, "--out", run, "--prompts", prompts), ("heads", run)):
        ended = headscope(capsys, monkeypatch, *words)
        assert ended.status == 0, ended.err
    pair = f"{tiny_folder.name}:{tiny_folder.name}"
    asked = (run, "--pair", pair, "--keep", "80%", "--trials", 1, "--table-images", 2, "--unseen", 2, "-o", out)
    tables = []
    for _ in range(2):
        ended = script(capsys, monkeypatch, "transfer/transfer.py", *asked)
        assert ended.status == 0, ended.err
        tables.append(pd.read_csv(out).drop(columns="seconds"))
    table = tables[0]
    pd.testing.assert_frame_equal(*tables)
    assert [*table.columns, "seconds"] == list(pd.read_csv(REPORTS / "transfer" / "transfer.csv").columns)
    assert list(table["kind"]) == ["by trace", "by map", "by depth"] * len(table["keep"].unique())
    assert (table["replay_kl"] >= 0).all()
    assert out.with_suffix(".png").stat().st_size > 0
