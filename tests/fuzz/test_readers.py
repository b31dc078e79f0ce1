"""A file that is missing, forbidden, or something else: three sentences, the same for every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headscope.errors import DataError
from headscope.heads import Heads
from headscope.models import Samples
from headscope.policy import load_policy
from headscope.tracing.files import column_names, read_curves, read_meta, read_table
from headscope.tuning.measure.sensitivity import load_table

READERS: dict[str, Callable[[Path], object]] = {
    "policy.safetensors": load_policy,
    "heads.safetensors": Heads.load,
    "calibration.parquet": Samples.load,
    "sensitivity.parquet": load_table,
    "heads.parquet": read_table,
    "prefix.parquet": column_names,
    "curves.safetensors": read_curves,
    "trace.json": lambda file: read_meta(file.parent),
}
every_reader = pytest.mark.parametrize("name", READERS)


@every_reader
def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: no such"):
        READERS[name](tmp_path / name)


@every_reader
def test_a_file_of_somebody_else_is_not_called_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"secret")

    def refuse(path: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=rf"{name}: not readable by this user \(Permission denied\)") as caught:
        READERS[name](tmp_path / name)
    assert not any(word in str(caught.value) for word in ("no such", "again", "damaged"))


@every_reader
def test_a_folder_in_its_place_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: is a folder"):
        READERS[name](tmp_path / name)


@every_reader
@pytest.mark.parametrize("content", [b"", b"PAR1", b"{", b"[]", b"\xff" * 100])
def test_other_content_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: ") as caught:
        READERS[name](tmp_path / name)
    assert "damaged" not in str(caught.value)
