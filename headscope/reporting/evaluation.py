"""The page of an evaluation: likeness, scores and images of every variant, from the files of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from headscope.errors import DataError
from headscope.reporting.html import inlined, write_page
from headscope.storage import read_json, read_parquet, read_table

SHOWN = 12  # prompts whose images stand in the page
_SIDE = 160  # pixels of an image in the page


def write_evaluation(folder: str | Path) -> Path:
    """Write report.html from likeness.csv, scores.csv, images.parquet and, where there is one, imported.csv.

    Raises:
        DataError: no finished evaluation, or a damaged file in it.
    """
    folder = Path(folder)
    if not (folder / "likeness.csv").is_file():
        raise DataError(f"{folder}: holds no finished evaluation; make one with `headscope evaluate`.")
    numbers = ("agreement", "psnr", "ssim", "cosine", "cache_bytes", "seconds")
    like = read_table(folder / "likeness.csv", {"variant": str, **dict.fromkeys(numbers, float)})
    scored = {"variant": str, "category": str, "score": float}
    scores = read_table(folder / "scores.csv", scored)
    imported = None
    if (folder / "imported.csv").is_file():
        imported = read_table(folder / "imported.csv", scored)
        imported = imported[imported["variant"].isin(like["variant"])]
    images = read_parquet(folder / "images.parquet", {"prompt": float, "text": str})
    facts = read_json(folder / "evaluation.json")
    return write_page(
        folder / "report.html",
        "evaluation.html.jinja",
        facts=facts,
        likeness=like.to_dict("records"),
        categories=list(dict.fromkeys(scores["category"])),
        scores=_by_variant(scores),
        imported=None if imported is None else _by_variant(imported),
        imported_categories=[] if imported is None else list(dict.fromkeys(imported["category"])),
        rows=_images(folder, like["variant"].tolist(), images, str(facts.get("layout"))),
        distances="kernel" in like,
        dtypes=any(str(name).startswith("full_") for name in like["variant"]),
    )


def _by_variant(table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        str(name): {str(row["category"]): row for row in part.to_dict("records")}
        for name, part in table.groupby("variant", sort=False)
    }


def _images(folder: Path, variants: list[str], images: pd.DataFrame, layout: str) -> list[dict[str, Any]]:
    """Images of the first seed for prompts spread over the file."""
    prompts = images.drop_duplicates("prompt").sort_values("prompt")
    chosen = prompts.iloc[:: max(1, -(-len(prompts) // SHOWN))]
    rows = []
    for prompt, text in zip(chosen["prompt"], chosen["text"], strict=True):
        place = {"geneval": f"{prompt:05d}/samples/0000.png", "dpg": ""}.get(layout, f"{prompt:05d}-0.png")
        shown = [{"variant": name, "url": inlined(folder / name / place, _SIDE, lossless=True)} for name in variants if place]
        rows.append({"text": text, "shown": [one for one in shown if one["url"]]})
    return [row for row in rows if row["shown"]]
