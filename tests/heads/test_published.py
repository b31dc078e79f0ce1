"""A published map is text like any other: byte order mark, line ends, blank lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from headscope.errors import DataError
from headscope.heads.published import read_scores


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_map_of_another_system_is_read(tmp_path: Path, end: str) -> None:
    (tmp_path / "map.csv").write_bytes(f"\ufeff0.1,0.9{end}{end}0.5, 1{end}".encode())
    assert read_scores(tmp_path / "map.csv", "2x2").scores().tolist() == [[pytest.approx(0.1), pytest.approx(0.9)], [0.5, 1.0]]


@pytest.mark.parametrize(
    ("written", "shape", "said"),
    [
        (b"0.1,0.2\n\n0.3\n", "2x2", "line 3 has 1 numbers, expected 2"),
        (b"0.1,0.2\n\n0.3,x\n", "2x2", "line 3: layer 1 head 1 is 'x'"),
        (b"0.1,\xe9\n", "1x2", "UTF-8"),
        (b"\0" * 8, "1x1", "zero bytes"),
        (b"", "0x0", "expected LAYERSxHEADS"),
        (b"0.1\n", "1x99999999999999999999", "expected LAYERSxHEADS"),
        (b"0.1\n", f"1x{'9' * 5000}", "expected LAYERSxHEADS"),
        (b"0.1\n", "1x999999", "line 1 has 1 numbers, expected 999999"),
    ],
)
def test_a_broken_map_names_its_line(tmp_path: Path, written: bytes, shape: str, said: str) -> None:
    (tmp_path / "map.csv").write_bytes(written)
    with pytest.raises(DataError, match=said):
        read_scores(tmp_path / "map.csv", shape)
