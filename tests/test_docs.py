"""What the documentation shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import headscope
from headscope.models.cache_name import cache_name
from headscope.policy import diff, merge, read_edits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_runtime_page_generates_an_image_in_the_users_own_code() -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", (DOCS / "runtime.md").read_text(encoding="utf-8"), re.DOTALL))
    names: dict[str, Any] = {}
    exec(code.replace("cache=Comp", f"{cache_name()}=Comp"), names)  # transformers before 5.24 have another name
    assert names["tokens"].shape == (1, 256)
    assert names["images"].shape == (1, 64, 64, 3)
    assert names["images"].dtype == torch.uint8
    assert (names["fewer"].bits == 8).all()


def test_the_runtime_page_edits_a_policy(tmp_path: Path) -> None:
    (code,) = re.findall(r"```toml\n(.*?)```", (DOCS / "runtime.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "edits.toml").write_text(code, encoding="utf-8")
    base = headscope.load_policy("stickers-20")
    merged = merge(base, read_edits(tmp_path / "edits.toml"), base.limit)
    assert [change.layer for change in diff(base, merged).layers] == [0, 4, 5, 6, 7]


def test_a_plain_network_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "own-model.md").read_text(encoding="utf-8")
    of_transformers, plain, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "from_pretrained" in of_transformers
    assert len([line for line in plain[plain.index("class") : plain.index("def load")].splitlines() if line]) <= 30
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(plain)
    names: dict[str, Any] = {}
    exec(code, names)
    model, policy = names["model"], names["found"].policy
    assert names["limit"].spec.bytes_of(policy) <= names["limit"].bytes
    assert names["small"].tokens.shape == (4, 16)
    whole = headscope.Policy.uniform(model.shape, window=8, heavy=8, stride=4, prefix=1)
    assert torch.equal(headscope.generate(model, names["names"], policy=whole).tokens, names["samples"].tokens)


def test_the_readme_goes_from_prompts_to_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (4, 64, 64, 3)
    policy = headscope.load_policy("runs/python/policy.safetensors", names["model"].shape)
    assert policy.limit == names["limit"]
    assert names["limit"].spec.share_of(policy) <= 0.2
    assert not torch.equal(names["small"].tokens, names["samples"].tokens)
