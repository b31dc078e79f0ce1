"""The images of the recipe, rendered from icon packages: one parquet row per concept and drawing style.

The packages are those of Iconify (one npm package per icon set). The user fetches them; nothing here uses a network.
With the versions below and resvg-py 0.5.0 the pixels are those that the bundled model was trained on.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from rich.console import Console
from rich.progress import track

from headscope.errors import DataError
from headscope.recipe.images import COLUMNS, caption
from headscope.storage import write_parquet

# Fewer sets than this and a word is one artist's drawing, from which nobody learns what the object looks like.
LEAST_SETS = 4
# Rendered larger and reduced (Lanczos), because resvg's own edges at 96 pixels are coarser.
OVERSAMPLING = 2

# What is not an everyday thing with a name: hands and people (they come in every skin tone), clock faces, keys, arrows
# and signs. Parts of a name, not words, as the data were made: `man` drops `mango`, `light` `slightly smiling face`.
DROPPED_PARTS = (
    *("tone", "light", "medium", "dark"),
    *("person", "people", "family", "boy", "girl", "man-"),
    *("hand", "finger", "thumb", "fist", "index"),
    *("arrow", "button", "keycap", "oclock", "thirty", "symbol", "-sign", "japanese"),
)
DROPPED_BEGINNINGS = ("man", "woman", "flag-", "kiss-")


@dataclass(frozen=True)
class IconSet:
    """One icon package; `style` is the word that a prompt uses for its way of drawing."""

    prefix: str
    version: str
    style: str

    @property
    def package(self) -> str:
        """The npm name, `@iconify-json/noto`."""
        return f"@iconify-json/{self.prefix}"

    @property
    def archive(self) -> str:
        """What `npm pack` calls its file."""
        return f"iconify-json-{self.prefix}-{self.version}.tgz"


SETS = (
    IconSet("emojione", "1.2.3", "emojione"),
    IconSet("fluent-emoji", "1.2.7", "fluent"),
    IconSet("fluent-emoji-flat", "1.2.6", "flat"),
    IconSet("fxemoji", "1.2.2", "firefox"),
    IconSet("noto", "1.2.9", "noto"),
    IconSet("twemoji", "1.2.5", "twemoji"),
)


@dataclass(frozen=True)
class Package:
    """A package that was read. icons: Iconify's `icons.json` (name -> body, width, ...); licence: SPDX name."""

    of: IconSet
    icons: dict[str, Any]
    licence: str


@dataclass(frozen=True)
class Drawing:
    """One icon and the concept it shows."""

    concept: str
    package: Package
    icon: str


def build_images(folder: Path, out: Path, size: int = 96) -> Path:
    """Write the parquet file `concept, style, caption, licence, source, webp`; webp is lossless, size x size pixels.

    Args:
        folder: holds the six packages, as `npm pack` leaves them or unpacked.

    Raises:
        DataError: packages are missing (says the command that fetches them) or damaged; resvg-py is not installed.
    """
    if size < 1:
        raise DataError(f"--size {size}: an image needs at least 1 pixel.")
    renderer = _renderer()
    drawings = choose_drawings(read_packages(folder))
    shown = track(drawings, description="images", console=Console(stderr=True))
    rows = [_row(drawing, size, renderer) for drawing in shown]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return write_parquet(table, out)


def read_packages(folder: Path, sets: Sequence[IconSet] = SETS) -> list[Package]:
    """Read the packages of `sets` in a folder, packed or unpacked.

    Raises:
        DataError: no such folder; packages that are missing or of another version; a damaged one.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; make it, then {_fetch(folder, sets)}.")
    unpacked = {} if all((folder / s.archive).is_file() for s in sets) else _unpacked(folder)
    places = [folder / s.archive if (folder / s.archive).is_file() else unpacked.get((s.package, s.version)) for s in sets]
    missing = [icon_set for icon_set, place in zip(sets, places, strict=True) if place is None]
    if missing:
        names = ", ".join(f"{s.package}@{s.version}" for s in missing)
        raise DataError(f"{folder}: {names} not found in it; {_fetch(folder, missing)}.")
    return [_read(icon_set, place) for icon_set, place in zip(sets, places, strict=True) if place is not None]


def choose_drawings(packages: Sequence[Package], least: int = LEAST_SETS) -> list[Drawing]:
    """The icons of concepts that at least `least` packages draw, ordered by concept, then package.

    Sets join words differently: `blackbird` and `black-bird` are one concept, called by the name with most words.
    """
    found: dict[str, dict[str, Drawing]] = {}
    for package in packages:
        for icon in sorted(package.icons["icons"], key=_words):  # the name with most words comes last, and stays
            found.setdefault(icon.replace("-", ""), {})[package.of.prefix] = Drawing("", package, icon)
    chosen = []
    for _, drawings in sorted(found.items()):
        name = max((drawing.icon for drawing in drawings.values()), key=_words)
        if len(drawings) >= least and not _dropped(name):
            concept = name.replace("-", " ")
            chosen += [Drawing(concept, drawing.package, drawing.icon) for _, drawing in sorted(drawings.items())]
    return chosen


def svg(package: Package, icon: str) -> str:
    """The icon as a document of its own; sizes that it does not name are its set's (Iconify's default is 16)."""
    entry, default = package.icons["icons"][icon], package.icons
    left, top = entry.get("left", default.get("left", 0)), entry.get("top", default.get("top", 0))
    width, height = entry.get("width", default.get("width", 16)), entry.get("height", default.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{entry["body"]}</svg>'
    )


def render(document: str, size: int, renderer: Callable[..., bytes]) -> Image.Image:
    """Draw an SVG document in the middle of a transparent square of size x size pixels."""
    large = OVERSAMPLING * size
    png = renderer(svg_string=document, width=large, height=large, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (large, large))
    square.paste(drawn, ((large - drawn.width) // 2, (large - drawn.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _row(drawing: Drawing, size: int, renderer: Callable[..., bytes]) -> tuple[str, str, str, str, str, bytes]:
    package, of = drawing.package, drawing.package.of
    source, webp = f"{of.package}:{drawing.icon}", io.BytesIO()
    try:
        render(svg(package, drawing.icon), size, renderer).save(webp, "WEBP", lossless=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{source}: cannot be drawn ({error}); fetch the package again.") from None
    said = caption(drawing.concept, of.style, None)
    return drawing.concept, of.style, said, package.licence, source, webp.getvalue()


def _read(icon_set: IconSet, place: Path) -> Package:
    try:
        if place.is_dir():
            icons, info = (json.loads((place / name).read_text("utf-8")) for name in ("icons.json", "info.json"))
        else:
            with tarfile.open(place) as archive:
                icons, info = (_member(archive, f"package/{name}") for name in ("icons.json", "info.json"))
        if not isinstance(icons["icons"], dict):
            raise ValueError("its icons are no table")
        return Package(icon_set, icons, str(info["license"]["spdx"]))
    except (OSError, EOFError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: damaged, not the icon package {icon_set.package} ({error}); fetch it again.") from None


def _member(archive: tarfile.TarFile, name: str) -> Any:
    stream = archive.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is no file")
    return json.load(stream)


def _unpacked(folder: Path) -> dict[tuple[str, str], Path]:
    """(name, version) -> folder, of all packages below `folder`."""
    found = {}
    for path in sorted(folder.rglob("package.json")):
        try:
            content = json.loads(path.read_text("utf-8"))
            found[content["name"], content["version"]] = path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue  # someone else's file
    return found


def _renderer() -> Callable[..., bytes]:
    try:
        import resvg_py
    except ImportError:
        raise DataError("Rendering icons needs resvg-py: install it with `pip install 'headscope[recipe]'`.") from None
    renderer: Callable[..., bytes] = resvg_py.svg_to_bytes
    return renderer


def _fetch(folder: Path, sets: Sequence[IconSet]) -> str:
    packages = " ".join(f"{icon_set.package}@{icon_set.version}" for icon_set in sets)
    return f"fetch with `npm pack --pack-destination {folder} {packages}`"


def _words(icon: str) -> tuple[int, str]:
    return icon.count("-"), icon


def _dropped(name: str) -> bool:
    return name.startswith(DROPPED_BEGINNINGS) or any(part in name for part in DROPPED_PARTS)
