"""The look of every figure, and how a figure becomes a file or a part of a page.

Figures are matplotlib's, made from `Figure` and never through pyplot, whose list would keep them and show them twice in a
notebook. matplotlib and seaborn are imported when the first figure is drawn, so that importing headscope stays quick.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from headscope.errors import DataError
from headscope.heads import SEMANTIC, SPATIAL
from headscope.storage import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
WIDE, NARROW = 7.5, 3.5  # inches: for a column on a desk, for a telephone
CLASSES = (SPATIAL, SEMANTIC)
INK, QUIET, OTHER, LINE, GROUND, PAPER = "#1d1c1a", "#68655e", "#8d887d", "#e4e0d8", "#f1eee8", "#fbfaf7"
BUFFER, ANCHOR = "#c9c4b8", "#7b5ea7"
COLOURS = {SPATIAL: "#1f7a8c", SEMANTIC: "#bd5424"}
ON_STRONG, ON_PALE, ON_MIDDLE = "#fffffe", "#010101", "#020202"  # text on a cell of a strong, a pale or a middling colour
# What a colour is called in templates/report.css, which has a light and a dark shade for each.
_VARIABLES = {
    INK: "currentColor",
    COLOURS[SPATIAL]: "var(--spatial)",
    COLOURS[SEMANTIC]: "var(--semantic)",
    QUIET: "var(--quiet)",
    OTHER: "var(--other)",
    LINE: "var(--line)",
    GROUND: "var(--ground)",
    PAPER: "var(--paper)",
    BUFFER: "var(--buffer)",
    ANCHOR: "var(--anchor)",
    ON_STRONG: "var(--on-strong)",
    ON_PALE: "var(--on-pale)",
}
_STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "headscope",
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.color": QUIET,
    "ytick.labelsize": 8,
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_HOVER, _NEXT = "hover:", "\u2063"  # how titles travel in an artist's gid: no number or name holds an invisible separator
_PIXELS = 1.4 * 1.15  # CSS pixels a point at most: 9 points are read as 12.6 to 14.5 pixels


@contextmanager
def styled() -> Iterator[None]:
    """The look of all figures, around what draws or writes one; also as a decorator, `@styled()`."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def blank(width: float, height: float, said: str = "") -> Figure:
    """An empty figure, which no window and no list knows.

    Args:
        width: in inches.
        height: in inches.
        said: what a screen reader says of it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_label(said)
    return figure


def hover(artist: Artist, said: str | Sequence[str]) -> None:
    """What a reader of the page is told over an artist.

    Args:
        artist: anything that was drawn.
        said: a title; of a collection also a title an item, in its order.
    """
    artist.set_gid(_HOVER + (said if isinstance(said, str) else _NEXT.join(said)))


def svg(figure: Figure) -> str:
    """A figure as a part of a page: as wide as its column but not blown up, in the page's colours and letters."""
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", _written(figure))  # HTML knows what an SVG is
    mark = sha256(text.encode()).hexdigest()[:8]  # names of one figure mean nothing in another, which may not be shown
    text = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{mark}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    wide = figure.get_figwidth() * 72 * _PIXELS
    label = escape(str(figure.get_label()))
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width: {wide:.0f}px"', 1)


def _written(figure: Figure) -> str:
    """SVG with titles for what hovers, without what no page needs: metadata, a style for all that is on the page, names of
    things that nobody refers to, and more digits than a screen shows."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    for prefix, space in (("", _SVG), ("xlink", _HREF)):
        ElementTree.register_namespace(prefix, space[1 : space.index("}")])
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", buffer.getvalue()))
    for element in root.iter():
        if (name := element.get("id", "")).startswith(_HOVER):
            _entitle(element, name.removeprefix(_HOVER).split(_NEXT))
        if name not in used:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            element.attrib[key] = re.sub(r"-?\d+\.\d{3,}", _rounded, value)
    for size in ("width", "height"):
        root.attrib.pop(size)
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _entitle(element: ElementTree.Element, titles: list[str]) -> None:
    """Give an element its title, or each of its drawn parts its own. What is not filled is felt all the same."""
    shapes = [part for group in element.iter() if group.tag != f"{_SVG}defs" for part in group if part.tag in _SHAPES]
    for part, title in zip(shapes if len(titles) > 1 else [element], titles, strict=True):
        said = ElementTree.Element(f"{_SVG}title")
        said.text = title
        part.insert(0, said)
    for part in shapes:
        part.set("style", f"{part.get('style', '')}; pointer-events: all")


_SHAPES = (f"{_SVG}path", f"{_SVG}use")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure whole or not at all, in the format of its suffix, the same bytes for the same data.

    Raises:
        DataError: the suffix is no format of a figure.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise DataError(f"{path}: figures are written as {', '.join(FORMATS)}; name a file that ends so.")
    if kind == "svg":
        return write_whole(path, lambda target: Path(target).write_text(_written(figure), encoding="utf-8"))
    stamp = {"CreationDate": None} if kind == "pdf" else None
    with styled():
        return write_whole(path, lambda target: figure.savefig(target, format=kind, dpi=160, metadata=stamp, facecolor="white"))


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights by as little as a simple sweep can until they lie `gap` apart, inside low .. high where they fit.

    Example: apart([10, 12, 40], 10, 0, 50) is [10, 20, 40].

    Args:
        places: heights, in any unit.
        gap: least distance of two.
        low: lower end of the room.
        high: upper end of the room.

    Returns:
        The new heights, in the order of `places`.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [0.0] * len(order)
    last = low - gap
    for index in order:
        last = max(float(places[index]), last + gap)
        moved[index] = last
    limit = high
    for index in reversed(order):  # what was pushed out at the end pushes back
        limit = min(moved[index], limit)
        moved[index] = limit
        limit -= gap
    return moved


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 10.5) -> None:
    """Names right of the ends of lines, pushed apart where they would lie on each other.

    Args:
        axes: whose limits stand.
        ends: (x, y, name, colour) of each line.
        gap: between two names, in points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # only now is it known where a point of the data lies
    points = [float(axes.transData.transform((x, y))[1]) * 72 / figure.dpi for x, y, _, _ in ends]
    box = axes.get_window_extent()
    places = apart(points, gap, box.y0 * 72 / figure.dpi, box.y1 * 72 / figure.dpi)
    for (x, y, name, colour), point, place in zip(ends, points, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(10, place - point),
            textcoords="offset points",
            verticalalignment="center",
            color=colour,
            weight="bold" if name == "searched" else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3},
        )


def framed(axes: Axes, x_label: str, y_label: str) -> None:
    """Few grid lines instead of an axis at the left, what they mean above them, where it takes no width, and plain numbers.

    Args:
        axes: with their data and scales.
        x_label: below, at the right.
        y_label: above.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}" if "e-" not in f"{value:g}" else f"{value:.9f}".rstrip("0"))
    for axis, scale, count in ((axes.xaxis, axes.get_xscale(), 5), (axes.yaxis, axes.get_yscale(), 4)):
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]) if scale == "linear" else LogLocator())
        axis.set_major_formatter(plain)
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel(x_label, loc="right")
    axes.set_title(y_label, fontsize=9, color=QUIET)


def distance_axis(axes: Axes, tokens: int, row_length: int, low: float = 1e-5) -> None:
    """Attention by how many tokens back, on a logarithmic scale: sharp and diffuse heads differ a hundredfold. Dotted lines
    stand a whole number of rows back.

    Args:
        axes: what is drawn on.
        tokens: how far back it goes.
        row_length: tokens of a row of the image.
        low: least share of attention that is shown.
    """
    figure = axes.get_figure(root=True)
    room = figure is not None and figure.get_figwidth() > 5 and len(figure.axes) == 1
    for above in range(1, (tokens - 1) // row_length + 1):
        place = above * row_length
        axes.axvline(place, color=OTHER, linewidth=0.7, linestyle=(0, (1, 3)), zorder=0)
        if above == 1 or (room and place < 0.65 * tokens):
            told = "the row above" if above == 1 else f"{above} rows above"
            look: Any = {"color": QUIET, "fontsize": 8, "va": "top", "textcoords": "offset points", "xytext": (4, -2)}
            axes.annotate(told, (place, 1.0), xycoords=axes.get_xaxis_transform(), **look)
    axes.set(yscale="log", xlim=(0, max(tokens - 1, 1)), ylim=(low, 1))
    framed(axes, "tokens back", "share of attention")


def name_of(layer: int, head: int) -> str:
    """`L7H9`."""
    return f"L{layer}H{head}"
