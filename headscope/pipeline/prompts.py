"""Prompts: from a file, from the model's own folder, or the plain ones below."""

from __future__ import annotations

import json
from pathlib import Path

from headscope.errors import DataError
from headscope.models.registry import bundled_folder

# For models that bring no prompts of their own; every other one calibrates, the rest judges.
PLAIN = (
    "a red apple on a wooden table",
    "a photo of a golden retriever in the snow",
    "a lighthouse on a cliff at sunset",
    "a bowl of ramen with an egg",
    "an astronaut riding a horse",
    "a blue vintage car parked in front of a brick house",
    "a watercolour of a mountain lake",
    "two cats sleeping on a sofa",
    "a steam train crossing a stone bridge",
    "a close-up of a sunflower with a bee",
    "a chess board seen from above",
    "a portrait of an old fisherman",
    "a glass of orange juice beside a newspaper",
    "a city street at night in the rain",
    "a red bicycle leaning against a yellow wall",
    "a wooden cabin in an autumn forest",
    "three balloons in a clear sky",
    "a slice of chocolate cake on a white plate",
    "a robot watering flowers",
    "a sailing boat on a calm sea",
    "a bookshelf with a small globe",
    "a penguin wearing a scarf",
    "a market stall with fruit and vegetables",
    "a green dragon made of origami paper",
    "a desert with cacti under a starry sky",
    "a cup of coffee with latte art",
    "a child flying a kite on the beach",
    "a medieval castle in the fog",
    "a parrot on a branch in the jungle",
    "a pair of brown leather boots",
    "a field of lavender with a farmhouse",
    "an owl in a tree by moonlight",
)


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a text file (one a line, blank lines and lines that start with # left out) or of JSON lines (`prompt`).

    Raises:
        DataError: missing, unreadable or empty file, or a JSON line without a prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such prompt file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error}).") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        prompts.append(_of_json(path, number, line) if str(path).endswith((".jsonl", ".json")) else line.strip())
    if not prompts:
        raise DataError(f"{path}: holds no prompt; write one a line.")
    return prompts


def _of_json(path: str | Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{path}: line {number} is not a JSON object with a "prompt".') from None
    return str(prompt)


def default_prompts(source: str) -> list[str]:
    """The prompts that a model folder brings (`prompts.txt`), else the plain ones."""
    folder = bundled_folder(source) or Path(source)
    own = folder / "prompts.txt"
    return read_prompts(own) if own.is_file() else list(PLAIN)


def split(prompts: list[str], calibration: int, unseen: int) -> tuple[list[str], list[str]]:
    """Prompts to trace and search on, and prompts to judge by; none stands in both.

    Takes them alternately, so that a file sorted by subject gives both parts every subject.

    Raises:
        DataError: fewer than two different prompts.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < 2:
        raise DataError("Found one prompt, expected at least two: one to search on and one to judge by.")
    return different[0::2][:calibration], different[1::2][:unseen]
