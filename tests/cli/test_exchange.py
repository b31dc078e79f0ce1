"""`headscope policy export` and `import`: what they print, and that a wrong file is one sentence and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headscope.policy import load_policy
from tests.cli.command import headscope


def test_a_policy_goes_out_as_json_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, back = tmp_path / "p.json", tmp_path / "back.safetensors"
    ended = headscope(capsys, monkeypatch, "policy", "export", "stickers-20", "--to", "json", "-o", file)
    assert ended.status == 0
    assert "660,992 here" in ended.out
    assert "lost     nothing" in ended.out
    ended = headscope(capsys, monkeypatch, "policy", "import", file, "-o", back)
    assert (ended.status, f"policy: {back}" in ended.out) == (0, True)
    policy = load_policy(back)
    assert policy.same_as(load_policy("stickers-20"))
    assert policy.results == load_policy("stickers-20").results


def test_duo_attention_goes_both_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = headscope(capsys, monkeypatch, "policy", "export", "stickers-20", "--to", "duo-attention", "-o", "pattern")
    assert ended.status == 0
    for said in ("units    KV heads", "269 tokens a stream", "at most 3,075,648 there", "lost     heavy: 45 KV heads"):
        assert said in ended.out
    notes = json.loads(Path("pattern/headscope.json").read_text(encoding="utf-8"))
    assert all(f"lost     {sentence}" in ended.out for sentence in notes["lost"])
    reading = ("policy", "import", "pattern", "--model", "stickers", "--prefix", 13)
    ended = headscope(capsys, monkeypatch, *reading, "-o", "whole.safetensors")
    assert ended.status == 0
    assert int((load_policy("whole.safetensors").window == 192).sum()) == 19
    ended = headscope(capsys, monkeypatch, *reading, "--from", "duo_attention", "--keep", "20%", "-o", "fifth.safetensors")
    assert "next: headscope policy show fifth.safetensors" in ended.out
    fifth = load_policy("fifth.safetensors", load_policy("stickers-20").shape)
    assert 0.19 < fifth.spec().share_of(fifth) <= 0.2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "stickers-20", "--to", "headkv"), "format headkv: is only read"),
        (("export", "none.safetensors", "--to", "json"), "no such policy file"),
        (("import", "scores.json"), "names no model that headscope knows"),
        (("import", "scores.json", "--from", "vllm"), "format vllm: is only written"),
        (("import", "scores.json", "--from", "json"), "no policy in headscope's JSON"),
        (
            ("import", "scores.json", "--from", "duo_attention", "--model", "stickers", "--prefix", 3),
            "no folder of DuoAttention",
        ),
        (("import", "scores.json", "--model", "stickers"), "holds scores and no sizes; give a limit"),
        (("import", "scores.json", "--model", "stickers", "--keep", "20%"), "give --model and --prefix too"),
        (("import", "scores.json", "--model", "stickers", "--keep", "20%", "--prefix", 13), "has scores of 2 heads"),
        (("import", "pattern", "--model", "stickers"), "give the longest prompt in tokens, --prefix, or a limit"),
        (
            ("import", "pattern", "--model", "stickers", "--prefix", 13),
            "has 1 layers of 2 heads, stickers has 8 layers of 8 KV",
        ),
        (("import", "other.json"), "it may be json or headkv: say which"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.json").write_text('{"0-0": [1], "0-1": [2]}\n', encoding="utf-8")
    Path("other.json").write_text('{"heads": 1}\n', encoding="utf-8")
    Path("pattern").mkdir()
    Path("pattern/config.json").write_text('{"sink_size": 14, "recent_size": 9}', encoding="utf-8")
    Path("pattern/full_attention_heads.tsv").write_text("1\t0\n", encoding="utf-8")
    ended = headscope(capsys, monkeypatch, "policy", *words, "-o", "out.safetensors")
    assert ended.status == 2
    if "too" in says:  # typer draws a box around a wrong use
        assert says in " ".join(ended.err.replace("\u2502", " ").split())
    else:
        sentence = ended.err.splitlines()[-1]
        assert sentence.startswith("error: ")
        assert says in sentence
        assert "Traceback" not in ended.err
    assert "out.safetensors" not in {path.name for path in tmp_path.iterdir()}
