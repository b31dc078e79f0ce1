"""Janus-Pro goes through the same adapter and the same command as the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from headscope.models import Samples, load_model
from headscope.policy import CacheSpec, load_policy
from tests.cli.command import headscope
from tests.janus_pro import processor_of, write_janus_pro


def run_of(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> Path:
    """A run folder: every step of `headscope run`, on two prompts."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("red apple\nblue car\n")
    options = ("--prompts", prompts, "--quick", "--trials", 1, "--keep", "20%")
    ended = headscope(capsys, monkeypatch, "run", folder, "--out", out, *options)
    assert ended.status == 0, ended.err
    assert (out / "report.html").exists()
    return out


def test_its_heads_and_its_chat_template_go_through_every_step(tmp_path: Path, capsys, monkeypatch) -> None:
    """Two heads of Janus-Pro's size and an image of 8 x 8 tokens; that of its true width takes minutes, see below."""
    folder = write_janus_pro(tmp_path / "janus-pro", heads=2, side=8)
    out = run_of(folder, tmp_path, capsys, monkeypatch)
    text = Samples.load(out / "unseen.parquet").texts[0]
    assert text == "<|User|>: blue car\n\n<|Assistant|>:<begin_of_image>"
    own = processor_of(AutoTokenizer.from_pretrained(folder))
    messages = [{"role": "user", "content": [{"type": "text", "text": "blue car"}]}]
    prompt = own.apply_chat_template(messages, add_generation_prompt=True)
    expected = own(text=prompt, generation_mode="image", return_tensors="pt")["input_ids"]
    model = load_model(str(folder))
    assert model.tokenize(["blue car"]).ids.tolist() == expected.tolist()
    policy = load_policy(out / "policy.safetensors", model.shape)
    assert (policy.shape.head_dim, policy.shape.geometry.tokens) == (128, 64)
    assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= 0.20


@pytest.mark.janus
def test_its_true_width_and_image_go_through_every_step(tmp_path: Path, capsys, monkeypatch) -> None:
    out = run_of(write_janus_pro(tmp_path / "janus-pro"), tmp_path, capsys, monkeypatch)
    policy = load_policy(out / "policy.safetensors")
    assert (policy.shape.kv_heads, policy.shape.geometry.tokens) == (16, 576)
    assert CacheSpec(policy.shape, policy.prefix).share_of(policy) <= 0.20
