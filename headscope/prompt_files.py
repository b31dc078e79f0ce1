"""Prompt files: text with one prompt a line, JSON lines, or a folder of text files; read by one rule, whoever asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.facts import shown
from headscope.storage import Line, parse_line, read_lines, read_text, text_fault

JSON_LINES = (".jsonl", ".ndjson", ".json")
_SHAPE = 'on each line an object with a "prompt", such as {"prompt": "a red apple"}'


@dataclass(frozen=True)
class Asked:
    """A prompt and what its file says of it.

    Attributes:
        prompt: the text.
        name: what its images are called after.
        facts: what its line in a JSON file says.
        line: that line as it stands.
        where: file and line, which begin a sentence about it.
    """

    prompt: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    line: str = ""
    where: str = ""


def read_asked(path: str | Path) -> list[Asked]:
    """Prompts of a text file, of JSON lines (.jsonl, .ndjson, .json), or of a folder of text files (*.txt, one prompt each).

    Blank lines are left out, in text also those that start with #. Endings may be in any case; in a folder files without a
    prompt and hidden ones are left out.

    Raises:
        DataError: nothing there, an unreadable file, or a line that is no JSON object with a prompt.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    lines = read_lines(path, "prompt file")
    if path.suffix.lower() in JSON_LINES:
        if lines and lines[0].text.lstrip().startswith("["):
            raise DataError(f"{lines[0].where} begins a list; expected {_SHAPE}.")
        found = [_of_json(f"{number:05d}", line) for number, line in enumerate(lines)]
    else:
        texts = [line for line in lines if not line.text.startswith("#")]
        found = [_of_text(f"{number:05d}", line) for number, line in enumerate(texts)]
    if not found:
        raise DataError(f"{path}: holds no prompt; write one a line.")
    return found


def check_prompt(prompt: object, where: str) -> str:
    """`prompt`, if it is text that a tokenizer takes; `where` it stands begins the sentence about one that is none.

    Raises:
        DataError: no text, nothing but blanks, a zero byte, or bytes that are no UTF-8 (a lone surrogate).
    """
    if fault := text_fault(prompt):
        raise DataError(f"{where}: the prompt {shown(prompt)} is {fault}; expected text in UTF-8.")
    return str(prompt)


def _of_text(name: str, line: Line) -> Asked:
    prompt = check_prompt(line.text.strip(), line.where)
    return Asked(prompt, name, {"prompt": prompt}, where=line.where)


def _of_json(name: str, line: Line) -> Asked:
    facts = parse_line(line, _SHAPE)
    if not isinstance(facts, dict) or "prompt" not in facts:
        raise DataError(f'{line.where} is not a JSON object with a "prompt"; expected {_SHAPE}.')
    return Asked(check_prompt(facts["prompt"], line.where), name, facts, line.text.strip(), line.where)


def _of_folder(folder: Path) -> list[Asked]:
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() == ".txt" and not file.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); give a folder of *.txt files, a prompt each.") from None
    found: dict[str, Asked] = {}
    for file in sorted(files, key=lambda file: (len(file.stem), file.stem)):
        prompt = read_text(file, "prompt file").strip()
        if not prompt:
            continue
        if file.stem in found:
            raise DataError(f"{file}: images are called after their prompt's file, and {found[file.stem].where} is so called.")
        found[file.stem] = Asked(check_prompt(prompt, str(file)), file.stem, where=str(file))
    if not found:
        raise DataError(f"{folder}: holds no text file with a prompt; give a folder of *.txt files, one prompt each.")
    return list(found.values())
