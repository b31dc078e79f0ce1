"""Every verb reads prompts by the same rule, and refuses the same line with the same sentence before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import headscope

STUDY = """
model = "stickers"
policy = "p.safetensors"
[limit]
keep = "20%"
[prompts]
file = "{prompts}"
"""


@pytest.mark.parametrize("verb", ["generate", "trace", "run", "search", "evaluate"])
def test_what_is_no_prompt_is_refused_by_every_verb(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "p.ndjson"
    prompts.write_text('{"prompt": "red apple"}\n{"prompt": null}\n')
    (tmp_path / "study.toml").write_text(STUDY.format(prompts=prompts))
    words = ["study.toml"] if verb == "search" else ["stickers", "--prompts", prompts]
    monkeypatch.chdir(tmp_path)
    ended = headscope(capsys, monkeypatch, verb, *words, "--out", tmp_path / "out")
    assert ended.status == 2
    assert "p.ndjson: line 2: the prompt null is no text" in ended.err
    assert not (tmp_path / "out").exists()


def test_generate_takes_a_folder_of_prompts(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.TXT").write_text("dog\n")
    out = tmp_path / "out"
    assert headscope(capsys, monkeypatch, "generate", tiny_folder, "--prompts", tmp_path / "p", "--out", out).status == 0
    assert '"dog"' in (out / "images.json").read_text()
