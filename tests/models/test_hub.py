"""What is fetched of a hub's model: its weights once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from headscope.errors import ModelError
from headscope.models import hub, load_model

BIN = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]
SAFE = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
SMALL = ["config.json", "tokenizer.json"]


def fetched(monkeypatch: pytest.MonkeyPatch, folder: Path, files: list[str] | None) -> list[str]:
    """What would be fetched of a model of these files; None: nobody answers, and both kinds are at hand."""
    (folder / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    seen: list[str] = []

    def info(self: Any, name: str, timeout: float) -> Any:
        if files is None:
            raise OSError("no network")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        seen.extend(filter_repo_objects(files or [*SMALL, *BIN, *SAFE], allow_patterns=allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "_look_for", lambda *_: None)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(folder / "config.json"))
    monkeypatch.setattr(hub.HfApi, "model_info", info)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(ModelError):  # the folder holds no more than its config.json
        load_model("deepseek-ai/Janus-Pro-1B", "cpu")
    return sorted(seen)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([*SMALL, *BIN, *SAFE, "README.md"], [*SMALL, *SAFE, "pytorch_model.bin.index.json"]),
        ([*SMALL, *BIN], [*SMALL, *BIN]),
        ([*SMALL, *BIN, "vision.safetensors"], [*SMALL, *BIN, "vision.safetensors"]),
        (None, [*SMALL, *BIN, *SAFE]),
    ],
)
def test_weights_in_both_formats_are_fetched_as_safetensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str] | None, expected: list[str]
) -> None:
    assert fetched(monkeypatch, tmp_path, files) == sorted(expected)
