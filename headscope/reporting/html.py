"""How a page becomes one HTML file that opens without a network."""

from __future__ import annotations

import base64
import io
import re
import shlex
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from headscope import words
from headscope.errors import DataError
from headscope.storage import write_text


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Fill a template of `templates/` and write the page whole or not at all.

    Args:
        path: of the page.
        template: file name.
        **content: what the template shows; texts are escaped, figures and other HTML are `Markup`.
    """
    return write_text(path, _environment().get_template(template).render(content))


@cache
def _environment() -> jinja2.Environment:
    folder = files("headscope.reporting") / "templates"
    loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "percent": _percent,
        "nats": words.nats,
        "size": lambda nbytes: together(words.size(nbytes)),
        "together": together,
        "shell": lambda value: shlex.quote(str(value)),
        "python": _python,
    }
    environment.globals["style"] = Markup(
        (files("headscope.reporting") / "templates" / "report.css").read_text(encoding="utf-8")
    )
    return environment


def _percent(share: float, digits: int = 0) -> str:
    return together(words.percent(share, digits))


def _python(value: object) -> str:
    """A text as Python writes it, in double quotes where that is the same."""
    quoted = repr(str(value))
    return quoted.replace("'", '"') if "'" not in str(value) else quoted


def together(text: str) -> str:
    """Keeps a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=%|(?:[KMGT]iB|bytes|ms|s|min|h)\b)", "\u00a0", text)


def inlined(path: Path, side: int, *, lossless: bool | None = None) -> str:
    """An image as a data URL; a large one is made smaller, so that the page stays light. Empty where there is none.

    Args:
        path: of the image.
        side: pixels that its longer side has at most.
        lossless: whether every pixel stays (default: where it is small, 96 pixels or fewer).

    Raises:
        DataError: it is no image.
    """
    if not path.is_file():
        return ""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: not a readable image ({error}); without that file the same command goes on.") from None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)  # which enlarges nothing
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=max(small.size) <= 96 if lossless is None else lossless, quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
