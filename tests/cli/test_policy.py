"""`headscope policy`: what its verbs print and write, and what they refuse in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headscope.policy import Policy, load_policy, save_policy
from tests.cli.command import Ended, headscope

EDITS = '[[edit]]\nlayers = "4-7"\nheads = "0,3"\nwindow = 3\n\n[[edit]]\nlayers = 0\nfrom = "stickers-10"\n'


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # which narrows tables
    return lambda line: headscope(capsys, monkeypatch, "policy", *line.split())


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    (tmp_path / "edits.toml").write_text(EDITS, encoding="utf-8")
    return tmp_path


def said(ended: Ended) -> list[str]:
    assert ended.status == 0, ended.err
    return ended.out.splitlines()


def test_a_diff_is_a_line_a_layer(command, edits: Path) -> None:
    assert said(command("diff stickers-20 stickers-20"))[-1] == "the same: both keep the same tokens in the same bits."
    lines = said(command("diff stickers-20 stickers-10"))
    assert "limit      661,094 bytes -> 330,547 bytes" in lines
    assert "bytes      660,992 -> 330,128 (20.0% -> 10.0% of the plain cache) for 1 x 2 streams in bfloat16" in lines
    assert "in all     64 of 64 heads in 8 layers change" in lines
    assert command("merge stickers-20 edits.toml -o m.safetensors").status == 0
    lines = said(command("diff stickers-20 m.safetensors"))
    assert [line.split()[0] for line in lines if "of 8" in line] == ["0", "4", "5", "6", "7"]


def test_a_merge_says_bytes_before_and_after(command, edits: Path) -> None:
    lines = said(command("merge stickers-20 edits.toml -o out/m.safetensors"))
    merged, base = load_policy("out/m.safetensors"), load_policy("stickers-20")
    sizes = [base.spec().bytes_of(one) for one in (base, merged)]
    assert lines[0].startswith(f"bytes: {sizes[0]:,} before, {sizes[1]:,} now (")
    assert lines[-1] == "next: headscope policy measure out/m.safetensors --on RUN"
    assert torch.equal(merged.window[0], load_policy("stickers-10").window[0])
    assert merged.window[4:, [0, 3]].eq(3).all()
    assert merged.limit == base.limit
    assert merged.provenance["merged_from"]["base"]["name"] == "stickers-20"
    assert "It was merged and has not been measured on stickers since: `headscope policy measure` does it." in said(
        command("show out/m.safetensors")
    )


def test_a_merge_that_no_longer_fits_names_its_limit_anew(command, edits: Path) -> None:
    (edits / "edits.toml").write_text("[[edit]]\nlayers = 0\nwindow = 255\n", encoding="utf-8")
    ended = command("merge stickers-20 edits.toml -o m.safetensors")
    assert ended.status == 2
    assert "error: the merged policy: takes" in ended.err
    assert "expected at most 661,094 (0.2 of the plain cache)" in ended.err
    assert not Path("m.safetensors").exists()
    assert "limit: 991,641 bytes" in said(command("merge stickers-20 edits.toml -o m.safetensors --keep 30%"))
    assert "limit: 2,097,152 bytes" in said(command("merge stickers-20 edits.toml -o m.safetensors --memory 2MiB --batch 2"))
    limit = load_policy("m.safetensors").limit
    assert limit is not None
    assert (limit.bytes, limit.spec.batch) == (2**21, 2)
    assert "limit: none" in said(command("merge stickers-20 edits.toml -o m.safetensors --no-limit"))
    assert load_policy("m.safetensors").limit is None


def test_a_head_that_drops_its_prompt_is_shown(command, edits: Path) -> None:
    (edits / "edits.toml").write_text('[[edit]]\nlayers = 2\nheads = "5"\nprompt = false\n', encoding="utf-8")
    said(command("merge stickers-20 edits.toml -o m.safetensors"))
    lines = said(command("show m.safetensors"))
    assert [line.split()[-2] for line in lines if line.startswith("    2")].count("ends") == 1
    assert lines[-1].split()[-2] == "whole"
    lines = said(command("diff stickers-20 m.safetensors"))
    assert [line.split()[-1] for line in lines if "of 8" in line] == ["prompt"]
    assert "It needs a reader that knows bits, prompt, score, and" in said(command("validate m.safetensors"))[1]


def test_a_valid_policy_says_what_it_is(command) -> None:
    lines = said(command("validate stickers-20 --model stickers --keep 20%"))
    assert lines == [
        "stickers-20: a policy of schema 2 for stickers, 8 layers, 8 KV heads of size 24, 16 x 16 tokens.",
        "It needs a reader that knows bits, prompt, score, and prompts of up to 13 tokens.",
        "It takes 660,992 bytes, 20.0% of the plain cache, for 1 x 2 streams in bfloat16, as it says itself.",
        "Its tables of scores take 24,840 bytes more, which all images share.",
        "It fits its own limit, 661,094 bytes.",
        "It fits 20%: 660,992 bytes of 661,094 for 1 x 2 streams in bfloat16.",
        "It fits stickers.",
        "It was measured: calibration_kl, calibration_top1, unseen.",
        "stickers-20: as it should be.",
    ]


def test_a_card_stands_beside_its_picture(command, tmp_path: Path) -> None:
    lines = said(command("card stickers-20 -o cards/twenty.md"))
    assert lines == ["card: cards/twenty.md", "picture: cards/twenty.png"]
    assert "![What each head keeps](<twenty.png>)" in Path("cards/twenty.md").read_text(encoding="utf-8")
    assert Path("cards/twenty.png").stat().st_size > 5000
    shutil.copy(Path(__file__).parents[2] / "policies" / "stickers-20.safetensors", tmp_path / "p.safetensors")
    said(command(f"card {tmp_path / 'p.safetensors'} -o p.md"))
    assert str(tmp_path) not in Path("p.md").read_text(encoding="utf-8")


def test_a_measurement_is_printed_and_kept(command, tiny, tiny_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\ndog\nblue car\nred car\n")
    asked = ("--out", "run", "--prompts", "prompts.txt", "--calibration", 2, "--unseen", 2)
    assert headscope(capsys, monkeypatch, "trace", tiny_folder, *asked).status == 0
    save_policy(Policy.uniform(tiny.shape, window=3, stride=1, prefix=6), "p.safetensors")
    lines = said(command("measure p.safetensors --on run -o q.safetensors"))
    found = load_policy("q.safetensors").results["measured"]
    assert lines[0].startswith("on 2 unseen prompts of ")
    assert lines[1].startswith(f"replay_kl  {found['replay_kl']:.4f} nats a token [")
    assert lines[2].startswith(f"free_kl    {found['free_kl']:.4f} [")
    assert lines[-1] == "policy: q.safetensors"
    assert not load_policy("p.safetensors").results
    said(command("measure p.safetensors --on run"))
    assert load_policy("p.safetensors").results["measured"] == found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("diff stickers-20 other.safetensors", "other.safetensors: is for tiny (2 layers, 2 KV heads of size 8, 4 x 4 tokens)"),
        ("diff stickers-20 none.safetensors", "none.safetensors: no such policy file"),
        ("validate weights.safetensors", "weights.safetensors: a safetensors file, but not a policy of headscope"),
        ("validate cut.safetensors", "cut.safetensors: not a policy file (not readable as safetensors"),
        ("validate pickled.pt", "pickled.pt: not a policy file (not readable as safetensors"),
        ("validate folder", "folder: is a folder; name the policy file in it"),
        (
            "validate stickers-20 --model stickers-scenes",
            "made for stickers (8 layers, 8 KV heads, 16 x 16 tokens), but stickers-scenes",
        ),
        ("validate stickers-20 --model nothing", "nothing"),
        (
            "validate stickers-20 --keep 10%",
            "stickers-20: takes 660,992 bytes for 1 x 2 streams in bfloat16, expected at most 330,547",
        ),
        ("validate stickers-20 --memory many", "memory many: expected a size"),
        ("merge stickers-20 none.toml -o out", "none.toml: no such file of edits"),
        ("merge stickers-20 edits.toml -o out --keep 200%", "keep 200%: expected more than 0% and at most 100%"),
        ("merge other.safetensors edits.toml -o out", "edits.toml: edit 1: layer 4: tiny has 2, numbered 0 to 1"),
        ("merge stickers-20 edits.toml -o folder", "folder: cannot be written"),
        ("card stickers-20 -o out", "out: a card is Markdown"),
        (
            "measure stickers-20 --on folder",
            "stickers-20: comes with headscope and stays as it is; name a file to write with --out",
        ),
        ("measure other.safetensors --on folder", "no run.json here"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(command, edits: Path, tiny, line: str, says: str) -> None:
    save_file({"x": torch.zeros(2)}, "weights.safetensors")
    Path("pickled.pt").write_bytes(b"\x80\x04K\x01.")
    Path("folder").mkdir()
    other = save_policy(Policy.uniform(tiny.shape, window=3, stride=1, prefix=6), "other.safetensors")
    Path("cut.safetensors").write_bytes(other.read_bytes()[:-5])
    before = {path.name: path.read_bytes() for path in edits.iterdir() if path.is_file()}
    ended = command(line)
    assert ended.status == 2, ended
    errors = [text for text in ended.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert says in errors[0]
    assert ended.out == ""
    assert {path.name: path.read_bytes() for path in edits.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "line", ["merge stickers-20 edits.toml -o out --keep 20% --memory 1MiB", "validate stickers-20 --batch 3"]
)
def test_limits_that_contradict_themselves_are_a_usage_error(command, edits: Path, line: str) -> None:
    assert command(line).status == 2
    assert not (edits / "out").exists()


@pytest.mark.parametrize("verb", ["show", "diff", "validate", "merge", "card", "measure"])
def test_help_shows_a_line_to_paste(command, verb: str) -> None:
    assert f"Example: headscope policy {verb}" in " ".join(command(f"{verb} --help").out.split())
