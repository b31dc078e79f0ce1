"""Janus-Pro goes through the same adapter and the same command as the bundled model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from headscope.models import Samples, load_model
from headscope.policy import kept_ratio, load_policy
from tests.cli.command import headscope
from tests.janus_pro import processor_of, write_janus_pro


def test_janus_pro_goes_through_every_step(tmp_path: Path, capsys, monkeypatch) -> None:
    folder = write_janus_pro(tmp_path / "janus-pro")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\nblue car\n")
    ended = headscope(
        capsys,
        monkeypatch,
        "run",
        folder,
        "--out",
        tmp_path / "run",
        "--prompts",
        prompts,
        "--quick",
        "--trials",
        1,
        "--keep",
        "20%",
    )
    assert ended.status == 0, ended.err
    assert (tmp_path / "run" / "report.html").exists()
    text = Samples.load(tmp_path / "run" / "unseen.parquet").texts[0]
    assert text == "<|User|>: blue car\n\n<|Assistant|>:<begin_of_image>"
    own = processor_of(AutoTokenizer.from_pretrained(folder))
    messages = [{"role": "user", "content": [{"type": "text", "text": "blue car"}]}]
    prompt = own.apply_chat_template(messages, add_generation_prompt=True)
    expected = own(text=prompt, generation_mode="image", return_tensors="pt")["input_ids"]
    assert load_model(str(folder)).encode(["blue car"]).ids.tolist() == expected.tolist()
    policy = load_policy(tmp_path / "run" / "policy.safetensors")
    assert policy.shape.geometry.tokens == 576
    assert kept_ratio(policy) <= 0.20
