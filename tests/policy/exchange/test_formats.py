"""Which format a file is in, what stands beside an export, and what writes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headscope.errors import DataError, HeadscopeError
from headscope.policy import FORMATS, CacheSpec, Limit, Policy, export_policy, import_policy, load_policy
from tests.policy.shapes import SHAPE


@pytest.fixture
def policy() -> Policy:
    return Policy.uniform(SHAPE, window=3, heavy=2, bits=8, stride=6, prefix=5)


WRITTEN = [name for name, each in FORMATS.items() if each.write is not None]


@pytest.mark.parametrize("name", WRITTEN)
def test_every_export_says_its_units_length_bytes_and_what_is_lost(name: str, policy: Policy, tmp_path: Path) -> None:
    written = export_policy(policy, tmp_path / "export", to=name)
    notes = json.loads(written.notes_path.read_text(encoding="utf-8"))
    notes = notes.get("headscope", notes)
    assert notes == written.notes
    assert notes["units"] == FORMATS[name].units
    assert notes["length"] == {"tokens": 41, "prefix": 5, "image": 36}
    assert notes["bytes"]["here"] == CacheSpec(SHAPE, 5).bytes_of(policy)
    assert notes["bytes"]["plain"] == CacheSpec(SHAPE, 5).full_bytes
    assert (notes["model"]["architecture"], notes["model"]["weights"]) == ("archi", "weights")
    assert bool(notes["lost"]) == (name != "json")
    said = "\n".join(written.sentences())
    assert all(sentence in said for sentence in notes["lost"] or ["nothing"])


@pytest.mark.parametrize("name", WRITTEN)
def test_an_export_is_written_again_over_itself_and_not_over_another_kind(name: str, policy: Policy, tmp_path: Path) -> None:
    first = export_policy(policy, tmp_path / "export", to=name)
    other = policy.replace(prefix=6)
    assert export_policy(other, tmp_path / "export", to=name).notes != first.notes
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"export", first.notes_path.relative_to(tmp_path).parts[0]}
    )
    place = tmp_path / "place"
    place.write_text("") if FORMATS[name].folder else place.mkdir()
    with pytest.raises(DataError, match="choose"):
        export_policy(policy, place, to=name)


def test_a_format_that_goes_the_other_way_or_that_nobody_knows_is_refused(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(HeadscopeError, match=r"format headkv: is only read, not written; expected json, .* or vllm"):
        export_policy(policy, tmp_path / "x", to="headkv")
    with pytest.raises(HeadscopeError, match="format vllm: is only written, not read; expected json, duo_attention or headkv"):
        import_policy(tmp_path / "x", "vllm")
    with pytest.raises(HeadscopeError, match="format gguf: unknown"):
        export_policy(policy, tmp_path / "x", to="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.json", b"{}", "does not say which format it is in; it may be json or headkv: say which"),
        ("p.json", b"[1", "does not say which format"),
        ("p.json", b"", "is empty"),
        ("p.json", b"\xff\xfe", "not a text file in UTF-8"),
        ("p.json", b'{"DuoAttentionPress": {}}', "settings of kvpress, which are only written"),
        ("full_attention_heads.tsv", b"1\t1\n", "name its folder"),
        ("folder/other.txt", b"", "a folder without full_attention_heads.tsv"),
    ],
)
def test_a_file_that_does_not_say_what_it_is_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(DataError, match=says):
        import_policy(file if file.parent == tmp_path else file.parent, shape=SHAPE, prefix=5)


def test_a_file_of_another_kind_than_was_said_is_refused(tmp_path: Path, policy: Policy) -> None:
    policy.save(tmp_path / "p.safetensors")
    np.savetxt(tmp_path / "p.tsv", np.ones((3, 4)))
    for source in ("json", "duo_attention", "headkv"):
        for name in ("p.safetensors", "p.tsv", "none"):
            with pytest.raises(DataError):
                import_policy(tmp_path / name, source, SHAPE, limit=Limit.parse("50%", CacheSpec(SHAPE, 5)))
    with pytest.raises(DataError, match="no such file of a policy"):
        import_policy(tmp_path / "none")


def test_a_limit_of_other_prompts_or_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h.json").write_text('{"0-0": [1]}', encoding="utf-8")
    limit = Limit.parse("50%", CacheSpec(SHAPE, 5))
    with pytest.raises(HeadscopeError, match="prefix 6: the limit is counted for prompts of 5 tokens"):
        import_policy(tmp_path / "h.json", shape=SHAPE, prefix=6, limit=limit)
    with pytest.raises(HeadscopeError, match="counted for toy, the policy is for other"):
        import_policy(tmp_path / "h.json", shape=replace(SHAPE, name="other"), limit=limit)


def test_a_shipped_policy_loses_its_bits_and_choices_in_words(tmp_path: Path) -> None:
    lost = export_policy(load_policy("stickers-20"), tmp_path / "p", to="duo_attention").notes["lost"]
    assert {sentence.split(":")[0] for sentence in lost} == {
        "numbers of tokens",
        "window",
        "heavy",
        "decay, per_visit, stride, score",
        "bits",
        "prompt",
        "semantic_score, limit, results, provenance, fingerprints of the model",
    }
