"""Images of every class of `stickers-classes` by seed, and how many of them show it.

    python reports/stickers/classes.py -o reports/stickers/classes

writes sheet.png, two images of each class, and images.csv, a row an image in the sheet's order: image (its number), class,
seed, detector (yes where StickerEval's detector sees that class, the image enlarged to 96 x 96) and annotator (likewise, by
labels.jsonl of the same folder; empty without it). Shares and their 95 % intervals are printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from bench_setup import one_thread, start
from PIL import Image
from torch.nn import functional

import headscope
from headscope.errors import DataError
from headscope.intervals import share_interval
from headscope.models import bundled_folder
from headscope.reporting import contact_sheet
from headscope.stickereval import StickerDetector
from headscope.storage import read_lines, write_csv, write_whole

MODEL = "stickers-classes"
COLOURS = 256
SIDE = 96  # pixels that the detector looks at


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to fill; labels.jsonl in it is read.")] = Path("classes"),
    images: Annotated[int, typer.Option(min=1, help="Of each class.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the first image; each has the next one.")] = 1,
) -> None:
    """Generate, show, and count what shows its class."""
    one_thread()
    model = headscope.load_model(MODEL)
    names = [line.text for line in read_lines(bundled_folder(MODEL) / "classes.txt", "list of classes")]
    asked = [name for name in names for _ in range(images)]
    pixels = model.to_images(headscope.generate(model, asked, seed).tokens)
    sheet = [(name, list(pixels[place * images : (place + 1) * images].numpy())) for place, name in enumerate(names)]
    few_colours(contact_sheet(sheet, [], out / "sheet.png"))
    seen = [{one.name for one in found} for found in StickerDetector.load().detect(enlarged(pixels))]
    named = labels(out / "labels.jsonl", len(asked))
    table = pd.DataFrame({"image": range(len(asked)), "class": asked, "seed": range(seed, seed + len(asked))})
    for judge, things in (("detector", seen), ("annotator", named)):
        shown = [name in found for name, found in zip(asked, things, strict=False)]
        table[judge] = pd.Series(["yes" if one else "no" for one in shown], dtype=object)
        if shown:
            low, high = share_interval(sum(shown), len(shown))
            print(f"{judge}: {sum(shown)} of {len(shown)}, {sum(shown) / len(shown):.2f} ({low:.2f} to {high:.2f})")
    print(write_csv(table, out / "images.csv"))


def few_colours(sheet: Path) -> None:
    """Make a PNG smaller."""
    image = Image.open(sheet).quantize(COLOURS, dither=Image.Dither.NONE)
    write_whole(sheet, lambda target: image.save(target, format="PNG", optimize=True))


def enlarged(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, H, W, 3] -> uint8 [n, SIDE, SIDE, 3], smoothly."""
    sized = functional.interpolate(pixels.permute(0, 3, 1, 2).float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    return sized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def labels(path: Path, count: int) -> list[set[str]]:
    """The things that the annotator names in each image; none without a file.

    Raises:
        DataError: not a label an image, in order.
    """
    if not path.is_file():
        return []
    try:
        found = [json.loads(line.text) for line in read_lines(path, "file of labels")]
        numbers, things = [one["image"] for one in found], [set(one["things"]) for one in found]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: not lines of {{"image": n, "things": {{class: count}}}} ({error}).') from None
    if numbers != list(range(count)):
        raise DataError(f"{path}: has {len(numbers)} labels, expected one for each of {count} images, from 0 on, in order.")
    return things


if __name__ == "__main__":
    start(main)
