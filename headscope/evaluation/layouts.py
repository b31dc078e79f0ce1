"""Folders that other scorers read: GenEval's (2310.11513) and DPG-Bench's (2403.05135)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headscope.errors import DataError
from headscope.prompt_files import Asked as Asked, read_asked as read_asked
from headscope.storage import write_text, write_whole

LAYOUTS = ("geneval", "dpg")
DPG_IMAGES = 4  # a prompt


def check_layout(layout: str | None, asked: Sequence[Asked], seeds: int) -> None:
    """Refuse prompts that the scorer of a layout could not use.

    Args:
        layout: one of LAYOUTS; None is never refused.
        asked: the prompts.
        seeds: images a prompt.

    Raises:
        DataError: geneval without a tag and what is to be there; dpg without a name of its own for each prompt, or with other
            than four images a prompt.
    """
    if layout == "geneval":
        for number, one in enumerate(asked, 1):
            if not {"tag", "include"} <= one.facts.keys():
                raise DataError(
                    f'layout geneval: prompt {number} ({one.prompt!r}) has no "tag" and "include", which GenEval\'s scorer '
                    "reads; give JSON lines that have both, or leave the layout out."
                )
    if layout == "dpg":
        if any(one.facts for one in asked):
            raise DataError(
                "layout dpg: DPG-Bench's scorer knows a prompt by the name of its file; give a folder of *.txt "
                "files, one prompt each."
            )
        if seeds != DPG_IMAGES:
            raise DataError(f"layout dpg: takes {DPG_IMAGES} images a prompt, not {seeds}; give {DPG_IMAGES} seeds.")


def write_geneval(folder: Path, number: int, asked: Asked, images: Sequence[np.ndarray]) -> None:
    """`00000/metadata.jsonl` and `00000/samples/0000.png` ...: what `evaluate_images.py` of GenEval takes.

    Args:
        folder: of all prompts.
        number: of the prompt.
        asked: the prompt.
        images: uint8 [height, width, 3], one a seed.
    """
    place = folder / f"{number:05d}"
    for seed, image in enumerate(images):
        save_image(image, place / "samples" / f"{seed:04d}.png")
    write_facts(folder, number, asked)


def write_facts(folder: Path, number: int, asked: Asked) -> None:
    """`00000/metadata.jsonl`, the prompt's line as it is; one that stands there already is not touched.

    Args:
        folder: of all prompts.
        number: of the prompt.
        asked: the prompt.
    """
    file = folder / f"{number:05d}" / "metadata.jsonl"
    text = (asked.line or json.dumps(asked.facts or {"prompt": asked.prompt}, ensure_ascii=False)) + "\n"
    if not file.is_file() or file.read_bytes() != text.encode():
        write_text(file, text)


def write_dpg(folder: Path, asked: Asked, images: Sequence[np.ndarray]) -> None:
    """One 2 x 2 grid a prompt, called after the prompt's file, as `compute_dpg_bench.py` takes with four images a prompt.

    Args:
        folder: of all prompts.
        asked: the prompt.
        images: uint8 [height, width, 3], four of them.

    Raises:
        DataError: not four images.
    """
    if len(images) != DPG_IMAGES:
        raise DataError(f"layout dpg: takes four images a prompt, found {len(images)}; give four seeds.")
    rows = [np.concatenate(images[first : first + 2], 1) for first in (0, 2)]
    save_image(np.concatenate(rows, 0), folder / f"{asked.name}.png")


def save_image(image: np.ndarray, path: Path) -> Path:
    """uint8 [height, width, 3] as PNG."""
    return write_whole(path, lambda target: Image.fromarray(np.asarray(image)).save(target, format="PNG"))
