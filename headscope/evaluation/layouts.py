"""Folders that other scorers read: GenEval's (2310.11513) and DPG-Bench's (2403.05135)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headscope.errors import DataError
from headscope.storage import read_text, write_text, write_whole

LAYOUTS = ("geneval", "dpg")
DPG_PICTURES = 4  # a prompt
JSON_LINES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class Asked:
    """A prompt and what its file says of it: `name`, what its pictures are called after; `facts`, its line in a JSON file."""

    prompt: str
    name: str
    facts: dict[str, Any]


def read_asked(path: str | Path) -> list[Asked]:
    """Prompts of a JSON lines file, a text file with one a line, or a folder of text files (DPG-Bench's), one prompt each.

    Raises:
        DataError: nothing there, an unreadable file, or a line that is no JSON object with a prompt.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
        found = [Asked(_text(file).strip(), file.stem, {}) for file in files]
        found = [one for one in found if one.prompt]
        if not found:
            raise DataError(f"{path}: holds no text file with a prompt.")
        return found
    lines = [(number, line) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    if path.suffix.lower() not in JSON_LINES:
        lines = [(number, line) for number, line in lines if not line.startswith("#")]
        facts: list[dict[str, Any]] = [{"prompt": line.strip()} for _, line in lines]
    else:
        facts = [_object(path, number, line) for number, line in lines]
    if not facts:
        raise DataError(f"{path}: holds no prompt; write one a line.")
    return [Asked(str(one["prompt"]), f"{number:05d}", one) for number, one in enumerate(facts)]


def _text(path: Path) -> str:
    return read_text(path, "prompt file")


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number} is not JSON ({error}).") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str) or not found["prompt"].strip():
        raise DataError(f'{path}: line {number} is not a JSON object with a "prompt".')
    return found


def write_geneval(folder: Path, number: int, asked: Asked, pictures: Sequence[np.ndarray]) -> None:
    """`00000/metadata.jsonl` and `00000/samples/0000.png` ...: what `evaluate_images.py` of GenEval takes.

    Args:
        number: of the prompt. pictures: uint8 [height, width, 3], one a seed.
    """
    place = folder / f"{number:05d}"
    for seed, picture in enumerate(pictures):
        save_picture(picture, place / "samples" / f"{seed:04d}.png")
    write_text(place / "metadata.jsonl", json.dumps(asked.facts or {"prompt": asked.prompt}, ensure_ascii=False) + "\n")


def write_dpg(folder: Path, asked: Asked, pictures: Sequence[np.ndarray]) -> None:
    """One 2 x 2 grid a prompt, called after the prompt's file, as `compute_dpg_bench.py` takes with four pictures a prompt.

    Raises:
        DataError: not four pictures.
    """
    if len(pictures) != DPG_PICTURES:
        raise DataError(f"--layout dpg: takes four pictures a prompt, found {len(pictures)}; give --seeds 4.")
    rows = [np.concatenate(pictures[first : first + 2], 1) for first in (0, 2)]
    save_picture(np.concatenate(rows, 0), folder / f"{asked.name}.png")


def save_picture(picture: np.ndarray, path: Path) -> Path:
    """uint8 [height, width, 3] as PNG."""
    return write_whole(path, lambda target: Image.fromarray(np.asarray(picture)).save(target, format="PNG"))
