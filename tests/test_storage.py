"""Files are written whole, with the mode that the user's umask gives; tables and JSON are read by one rule, or refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from headscope.errors import DataError
from headscope.storage import read_json, read_table, whole_file, write_json, write_text, write_whole

TABLE = {"method": str, "replay_kl": float, "budget": object}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives_whatever_library_writes_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "p.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)
        write_text(tmp_path / "p.txt", "text")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("p.safetensors", "p.txt")] == [mode, mode]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    target = write_text(tmp_path / "a.txt", "before")
    for number, advised in ((errno.ENOSPC, True), (errno.EACCES, False)):

        def write(temporary: Path, number: int = number) -> None:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number), str(temporary))

        with pytest.raises(DataError, match="cannot be written") as error:
            write_whole(target, write)
        assert ("free some space" in str(error.value)) == advised
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]


def test_bytes_of_a_path_that_are_no_utf_8_come_back_from_json(tmp_path: Path) -> None:
    value = {"source": os.fsdecode(b"/models/caf\xe9"), "prompt": "ein Käfer"}
    assert read_json(write_json(tmp_path / "a.json", value)) == value
    assert "Käfer" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_table_is_read_as_its_cells_stand(tmp_path: Path, start: bytes, end: bytes) -> None:
    rows = [b"method,replay_kl,budget", b"NA,0.5,20%", b"007,,", b'"a,b",1e-3,None']
    (tmp_path / "t.csv").write_bytes(start + end.join(rows) + end)
    table = read_table(tmp_path / "t.csv", TABLE)
    assert table["method"].tolist() == ["NA", "007", "a,b"]
    np.testing.assert_equal(table["replay_kl"].tolist(), [0.5, np.nan, 1e-3])
    assert table["budget"].fillna("").tolist() == ["20%", "", "None"]
    assert read_table(tmp_path / "t.csv", ("budget",)).columns.tolist() == table.columns.tolist()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "cannot be read as a CSV table"),
        (b"method,budget\nh2o,1\n", "has no column replay_kl; its columns are method, budget"),
        (b"method,replay_kl,budget\nh2o,1,1\nssd,NA,1\n", 'row 2 has replay_kl "NA", expected a number'),
        (b"method,replay_kl,budget\nh2o,nan,1\n", 'row 1 has replay_kl "nan", expected a number'),
        (b"method,replay_kl,budget\nh2o,1,1\nssd,-inf,1\n", "row 2 has replay_kl -Infinity, expected a number"),
        (b"method,replay_kl,budget\nh2o,True,1\n", 'row 1 has replay_kl "True", expected a number'),
        (b"method,replay_kl,budget\n,1,1\n", "row 1 has method an empty cell, expected a name"),
        (b"method,replay_kl,budget\nh2o,1,1,1\n", "more cells than its header"),
        (b"method,replay_kl,budget\nh2o,1,1\nh2o,1,1,1\n", "cannot be read as a CSV table"),
        (b'method,replay_kl,budget\n"h2o,1,1\n', "cannot be read as a CSV table"),
        (b"method,replay_kl,budget\ncaf\xe9,1,1\n", "not a text file in UTF-8"),
        (b"\0" * 64, "zero bytes"),
    ],
)
def test_a_table_of_something_else_is_one_sentence(tmp_path: Path, written: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(written)
    with pytest.raises(DataError, match=r"^[^\n]*t\.csv: [^\n]*$") as error:
        read_table(tmp_path / "t.csv", TABLE)
    assert said in str(error.value)


def test_a_parquet_table_is_held_to_the_same_rule(tmp_path: Path) -> None:
    from headscope.storage import read_parquet

    path = tmp_path / "t.parquet"
    good = pd.DataFrame({"method": ["NA"], "replay_kl": [0.5], "budget": [None]})
    good.to_parquet(path)
    pd.testing.assert_frame_equal(read_parquet(path, TABLE), good)
    for column, values in (
        ("replay_kl", ["x"]),
        ("replay_kl", [[1.0, 2.0]]),
        ("method", [["a", "b"]]),
        ("replay_kl", [np.inf]),
        ("method", [1]),
    ):
        good.assign(**{column: values}).to_parquet(path)
        with pytest.raises(DataError, match=rf"t\.parquet: .*{column}.* expected"):
            read_parquet(path, TABLE)
    good.drop(columns="method").to_parquet(path)
    with pytest.raises(DataError, match="has no column method"):
        read_parquet(path, TABLE)
    for written in (b"", b"PAR1", path.read_bytes()[:-9]):
        path.write_bytes(written)
        with pytest.raises(DataError, match=r"^[^\n]*t\.parquet: [^\n]*$"):
            read_parquet(path, TABLE)
    with pytest.raises(DataError, match="no such table"):
        read_parquet(tmp_path / "none.parquet")


def test_json_with_a_byte_order_mark_is_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    "written",
    [b"", b"{", b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 5000, b'{"a": "\xe9"}', b"\0" * 64, b'{"a": {"b": 1, "b": 1}}'],
)
def test_json_that_says_nothing_certain_is_one_sentence(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "a.json").write_bytes(written)
    with pytest.raises(DataError, match=r"^[^\n]*a\.json: [^\n]*$"):
        read_json(tmp_path / "a.json")
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError):
            read_json(missing)
