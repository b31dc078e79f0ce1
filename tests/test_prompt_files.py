"""Prompt files are read by one rule, whoever asks: generate, trace, run, a study definition, evaluate and its grader."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from headscope.errors import DataError
from headscope.evaluation.layouts import read_asked
from headscope.pipeline.prompts import read_prompts
from headscope.stickereval.prompts import read_grading_prompts

LEMON = {"tag": "single", "include": [{"class": "lemon"}]}


def of_evaluate(path: Path) -> list[str]:
    return [one.prompt for one in read_asked(path)]


def of_grader(path: Path) -> list[str]:
    return [one.prompt for one in read_grading_prompts(path)]


EVERY = pytest.mark.parametrize("read", [read_prompts, of_evaluate])
JSON = pytest.mark.parametrize("read", [read_prompts, of_evaluate, of_grader])


def line(prompt: object) -> str:
    return json.dumps({**LEMON, "prompt": prompt})


@EVERY
@pytest.mark.parametrize("name", ["p.txt", "p.TXT", "p", "p.prompts"])
def test_text_holds_a_prompt_a_line(tmp_path: Path, read: Callable, name: str) -> None:
    (tmp_path / name).write_bytes("\ufeff# a remark\r\n\r\n  a dog \r\n #1 dad mug\n\t\nred\rblue\n".encode())
    assert read(tmp_path / name) == ["a dog", "#1 dad mug", "red", "blue"]


@JSON
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "JSONL", "NdJson"])
def test_json_lines_are_known_by_any_ending_in_any_case(tmp_path: Path, read: Callable, ending: str) -> None:
    written = "\ufeff" + "\r\n".join([line("a dog"), "", "  ", line("null"), "\ufeff" + line(" two owls ")])
    (tmp_path / f"p.{ending}").write_bytes(written.encode())
    assert read(tmp_path / f"p.{ending}") == ["a dog", "null", " two owls "]


@EVERY
@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\u0085", "\x0c", "\x0b", "\x1c"])
def test_only_line_ends_end_a_line(tmp_path: Path, read: Callable, inside: str) -> None:
    prompts = [f"a red{inside}apple", "dog"]
    (tmp_path / "p.txt").write_text("\n".join(prompts), encoding="utf-8")
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read(tmp_path / "p.txt") == read(tmp_path / "p.jsonl") == prompts


@EVERY
def test_a_folder_holds_a_prompt_a_file(tmp_path: Path, read: Callable) -> None:
    for name, text in {"10.txt": "ten\n", "2.TXT": "\ufefftwo\r\n", "3.txt": "\n", "._2.txt": "\0", "README.md": "no"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(tmp_path) == ["two", "ten"]


def test_files_of_one_name_would_give_images_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "a.TXT").write_text("an owl")
    if len(os.listdir(tmp_path)) == 2:  # where names differ by case
        with pytest.raises(DataError, match=r"a\.(txt|TXT) is so called"):
            read_asked(tmp_path)


@JSON
@pytest.mark.parametrize(
    "value", [None, 5, 0.5, True, ["a dog"], {"text": "a dog"}, "", " \u2028\t", "\ud800", "a\udce9", "a\0b"]
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, read: Callable, value: object) -> None:
    (tmp_path / "p.jsonl").write_text(f"{line('a dog')}\n\n{line(value)}\n")
    with pytest.raises(DataError, match=r"p\.jsonl: line 3: the prompt "):
        read(tmp_path / "p.jsonl")


@JSON
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"a dog"', 'is not a JSON object with a "prompt"'),
        ('["a dog"]', 'is not a JSON object with a "prompt"'),
        ('{"text": "a dog"}', 'is not a JSON object with a "prompt"'),
        ("# a remark", "is not JSON"),
        ('{"prompt": "a dog"', "is not JSON"),
        ('{"prompt": "a dog"} {"prompt": "an owl"}', "is not JSON"),
        ('{"prompt": "a dog", "prompt": "an owl"}', "'prompt' twice"),
        ('{"prompt": ' + "[" * 100_000, "cannot be read"),
        ('{"prompt": 1' + "0" * 5000 + "}", "cannot be read"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, read: Callable, text: str, said: str) -> None:
    (tmp_path / "p.jsonl").write_text(f"\n{line('a dog')}\n{text}\n")
    with pytest.raises(DataError, match=r"p\.jsonl: line 3") as error:
        read(tmp_path / "p.jsonl")
    assert said in str(error.value)


@JSON
@pytest.mark.parametrize("text", ['["a dog"]', '\n[\n {"prompt": "a dog"}\n]\n', '{\n "prompt": "a dog"\n}\n'])
def test_json_that_is_not_in_lines_says_what_is_expected(tmp_path: Path, read: Callable, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=r'p\.json: line \d .*expected on each line an object with a "prompt"'):
        read(tmp_path / "p.json")


@EVERY
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("# only a remark\n\n", "holds no prompt"),
        (b"", "holds no prompt"),
        (b"caf\xe9\n", "UTF-8"),
        ("a dog".encode("utf-16"), "UTF-8"),
        (b"a\0b\n", "zero bytes"),
    ],
)
def test_a_file_without_prompts_is_one_sentence(tmp_path: Path, read: Callable, written: str | bytes, said: str) -> None:
    (tmp_path / "p.txt").write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(DataError, match=said):
        read(tmp_path / "p.txt")
    (tmp_path / "f").mkdir()
    for missing in (tmp_path / "none.txt", tmp_path / "f"):
        with pytest.raises(DataError, match=f"{missing.name}: "):
            read(missing)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(str.strip), min_size=1, max_size=4))
@example(["\ufeff"])
@example(["\u2028a", "#", "[1]"])
def test_any_text_comes_back_from_json_lines(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    for plain in (True, False):
        lines = [json.dumps({"prompt": prompt}, ensure_ascii=plain) for prompt in prompts]
        path.write_text("\n".join(lines), encoding="utf-8")
        assert read_prompts(path) == of_evaluate(path) == prompts


def test_a_prompt_of_the_command_line_may_be_no_utf_8() -> None:
    from headscope.prompt_files import check_prompt

    assert check_prompt("un café", "prompt 1") == "un café"
    for typed in (os.fsdecode(b"un caf\xe9"), " ", None):
        with pytest.raises(DataError, match=r"^prompt 2 of 2: the prompt "):
            check_prompt(typed, "prompt 2 of 2")
