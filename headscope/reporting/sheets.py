"""Contact sheets: many small images with their prompts, one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from headscope.errors import DataError
from headscope.storage import write_whole

_INK, _PAPER, _QUIET = (28, 28, 30), (255, 255, 255), (120, 120, 126)
_GAP, _MARGIN, _LINE = 8, 20, 15
_WIDTH = 1200  # the sheet has as many columns as fit


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray | Image.Image]]],
    column_titles: Sequence[str],
    path: str | Path,
    scale: int = 2,
) -> Path:
    """Write a sheet of cells, each the images of one prompt side by side with the prompt below.

    Args:
        rows: (prompt, images of one size, uint8 [height, width, 3] or Pillow's).
        column_titles: what the images of a cell are, or none.
        path: of the PNG file.
        scale: each pixel is drawn scale x scale, without smoothing.

    Raises:
        DataError: nothing to show, or cells that differ in the number of images.
    """
    if not rows:
        raise DataError(f"{path}: no image to show on a contact sheet.")
    counts = {len(images) for _, images in rows} | ({len(column_titles)} if column_titles else set())
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            f"{path}: the cells of a contact sheet need as many images each as there are titles, found {sorted(counts)}."
        )
    height, width = (side * scale for side in np.asarray(rows[0][1][0]).shape[:2])
    font = ImageFont.truetype(_font_file(), 11)
    cell_width = len(rows[0][1]) * (width + 2) - 2
    columns = max(1, min(len(rows), (_WIDTH - 2 * _MARGIN) // (cell_width + 2 * _GAP)))
    captions = [_wrapped(prompt, font, cell_width) for prompt, _ in rows]
    lines = max(len(caption) for caption in captions)
    cell_height = height + lines * _LINE + 3 * _GAP
    head = _LINE + _GAP if column_titles else 0
    count = -(-len(rows) // columns)
    size = (2 * _MARGIN + columns * (cell_width + 2 * _GAP) - 2 * _GAP, 2 * _MARGIN + head + count * cell_height)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, ((_, images), caption) in enumerate(zip(rows, captions, strict=True)):
        x = _MARGIN + (number % columns) * (cell_width + 2 * _GAP)
        y = _MARGIN + head + (number // columns) * cell_height
        for place, image in enumerate(images):
            left = x + place * (width + 2)
            if number < columns and column_titles:
                pen.text((left, _MARGIN), column_titles[place], fill=_QUIET, font=font)
            shown = _image(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (left, y))
        for line, text in enumerate(caption):
            pen.text((x, y + height + 4 + line * _LINE), text, fill=_INK, font=font)
    return write_whole(path, lambda target: sheet.save(target, format="PNG", optimize=True))


@lru_cache(maxsize=1)
def _font_file() -> str:
    """The font that matplotlib brings, found without loading it."""
    place = find_spec("matplotlib")
    assert place is not None  # headscope depends on it
    assert place.origin is not None
    return str(Path(place.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


def _image(image: np.ndarray | Image.Image) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 3) -> list[str]:
    """At most `most` lines that fit `width` pixels; what does not fit is cut with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " ..."]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.removesuffix(" ...")
    while kept and font.getlength(kept + "...") > width:
        kept = kept[:-1]
    return kept.rstrip() + "..."
