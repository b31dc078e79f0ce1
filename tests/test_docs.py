"""What the documentation shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import headscope
from headscope.errors import DataError
from headscope.models.cache_name import cache_name
from headscope.pipeline.model_check import check_model
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
    of_transformers, _, plain, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
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


def test_a_subclass_makes_tokens_of_captions() -> None:
    page = (DOCS / "own-model.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# captions.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=28,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
    )
    model = names["Captioned"](LlamaForCausalLM(config), "mine", geometry=headscope.Geometry(4, 4), codes=(10, 16))
    assert (model.reads_prompts, model.starts) == (True, True)
    prefix = model.tokenize(["a Red cat", "dog"])
    assert (prefix.ids * prefix.mask).tolist() == [[0, 17, 2, 26], [0, 0, 3, 26]]
    assert [finding.sentence() for finding in check_model(model, ["a red cat", "dog"]) if finding.wrong] == []
    with pytest.raises(DataError, match='prompt "a b c d": 5 tokens, mine takes 1 to 4 before an image'):
        model.tokenize(["a b c d"])
    with pytest.raises(DataError, match=r'prompt "~": tokens \[29, 26\], mine has 28 from 0 on'):
        model.tokenize(["~"])


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
