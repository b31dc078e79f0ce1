"""The page of an evaluation: likeness, scores and pictures of every variant, from the files of its folder."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from headscope.errors import DataError
from headscope.reporting import words
from headscope.storage import read_json, read_parquet, read_table, write_text

SHOWN = 12  # prompts whose pictures stand in the page


def write_evaluation(folder: str | Path) -> Path:
    """Write report.html from likeness.csv, scores.csv, pictures.parquet and, where there is one, imported.csv.

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
    pictures = read_parquet(folder / "pictures.parquet", {"prompt": float, "text": str})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"percent": words.percent, "size": words.size}
    package = files("headscope.reporting")
    template = environment.from_string((package / "evaluation.html.jinja").read_text(encoding="utf-8"))
    style = Markup((package / "report.css").read_text(encoding="utf-8"))
    facts = read_json(folder / "evaluation.json")
    text = template.render(
        style=style,
        facts=facts,
        likeness=like.to_dict("records"),
        categories=list(dict.fromkeys(scores["category"])),
        scores=_by_variant(scores),
        imported=None if imported is None else _by_variant(imported),
        imported_categories=[] if imported is None else list(dict.fromkeys(imported["category"])),
        rows=_pictures(folder, like["variant"].tolist(), pictures, str(facts.get("layout"))),
        distances="kernel" in like,
        dtypes=any(str(name).startswith("full_") for name in like["variant"]),
    )
    return write_text(folder / "report.html", text)


def _by_variant(table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        str(name): {str(row["category"]): row for row in part.to_dict("records")}
        for name, part in table.groupby("variant", sort=False)
    }


def _pictures(folder: Path, variants: list[str], pictures: pd.DataFrame, layout: str) -> list[dict[str, Any]]:
    """Pictures of the first seed for prompts spread over the file."""
    prompts = pictures.drop_duplicates("prompt").sort_values("prompt")
    chosen = prompts.iloc[:: max(1, -(-len(prompts) // SHOWN))]
    rows = []
    for prompt, text in zip(chosen["prompt"], chosen["text"], strict=True):
        place = {"geneval": f"{prompt:05d}/samples/0000.png", "dpg": ""}.get(layout, f"{prompt:05d}-0.png")
        shown = [{"variant": name, "url": _inlined(folder / name / place)} for name in variants if place]
        rows.append({"text": text, "shown": [one for one in shown if one["url"]]})
    return [row for row in rows if row["shown"]]


def _inlined(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: not a readable picture ({error}); without that file the same command writes it.") from None
    small.thumbnail((160, 160), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
