"""The page of a benchmark on a GPU: tokens a second, a step part by part beside what it costs at least, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from headscope.heads import SEMANTIC, SPATIAL
from headscope.reporting.html import write_page
from headscope.reporting.style import COLOURS, GROUND, INK, LINE, NARROW, OTHER, QUIET, WIDE, blank, hover, styled, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = ("card", "events")  # steps whose times have a floor beside them
_OWN = ("kernels", "tune")


def write_gpu_page(
    path: str | Path, rows: Sequence[dict[str, Any]], said: Sequence[str], records: Sequence[dict[str, Any]]
) -> Path:
    """Write one page that opens without a network.

    Args:
        path: of the page.
        rows: one a variant and batch: shape, device, batch, variant, decoder, tokens_s, tokens_s_first, ms_step,
            ms_step_predicted, share, cache_bytes, peak_bytes, note.
        said: sentences of the main figures.
        records: all that was measured.
    """
    groups = dict.fromkeys((str(row["shape"]), str(row["device"])) for row in rows)
    parts = {key: [row for row in rows if (row["shape"], row["device"]) == key] for key in groups}
    faults = [str(one["value"]) for one in records if one["what"] == "fault"]
    return write_page(
        Path(path),
        "gpu.html.jinja",
        card=", ".join(dict.fromkeys(str(one["device"]) for one in records if one["what"] == "machine")) or "no card",
        said=[sentence for sentence in said if not sentence.startswith("fault: ")],
        speeds=[(*key, _both(part), part) for key, part in parts.items()],
        parts=_timed(records, _PARTS),
        kernels=_timed(records, _OWN),
        tokens=[one for one in records if one["what"] == "tokens equal to the CPU's"],
        faults=list(dict.fromkeys(faults)),
        facts=_facts(records),
    )


def _timed(records: Sequence[dict[str, Any]], steps: Sequence[str]) -> list[dict[str, Any]]:
    """Numbers of some steps: name, what they belong to, value, unit, predicted."""
    shown = []
    for one in records:
        if one["step"] in steps and isinstance(one["value"], (int, float)):
            about = [str(one[name]) for name in ("which", "variant") if name in one]
            about += [f"token {one['token']}"] if "token" in one else []
            value, predicted, unit = one["value"], one.get("predicted"), str(one["unit"])
            if unit.endswith("/s"):
                value, unit = value / 1e9, f"G{unit}"
            shown.append({"what": one["what"], "about": ", ".join(about), "value": value, "unit": unit, "predicted": predicted})
    return shown


def _facts(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Versions and machine, of the last time that they were noted."""
    found: dict[str, str] = {}
    for one in records:
        if one["what"] in ("versions", "machine"):
            found |= {str(name): str(value) for name, value in one["value"].items() if value is not None}
    return found


def _both(rows: Sequence[dict[str, Any]]) -> Markup:
    """A figure for a desk and for a telephone; the style sheet shows one."""
    wide, narrow = (svg(speeds(rows, width)) for width in (WIDE, NARROW))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


@styled()
def speeds(rows: Sequence[dict[str, Any]], width: float = WIDE) -> Figure:
    """Tokens a second, a bar a batch and variant; a pale one behind it goes to what the card could do at most.

    Args:
        rows: batch, variant, tokens_s, ms_step_predicted, of one shape and card.
        width: of the figure, in inches.
    """
    ordered = sorted(rows, key=lambda row: row["batch"])
    batches = sorted({row["batch"] for row in ordered})
    places = [number + 0.5 * batches.index(row["batch"]) for number, row in enumerate(ordered)]  # a gap between batches
    spoken = ", ".join(f"{row['variant']} at {row['batch']} {row['tokens_s']:,.0f}" for row in ordered)
    figure = blank(width, 0.25 * (max(places, default=0) + 1) + 0.1, f"Tokens a second: {spoken}")
    axes = figure.subplots()
    beside: Any = {"xytext": (6, 0), "textcoords": "offset points", "va": "center_baseline", "color": INK}
    for place, row in zip(places, ordered, strict=True):
        if predicted := row["ms_step_predicted"]:
            most = 1e3 * row["batch"] / predicted
            hover(axes.barh(place, most, height=0.72, color=GROUND)[0], f"at most {most:,.0f} tokens a second")
        title = f"{row['variant']}, batch {row['batch']}: {row['tokens_s']:,.0f} tokens a second"
        hover(axes.barh(place, row["tokens_s"], height=0.72, color=_colour(str(row["variant"])))[0], title)
        axes.annotate(f"{row['tokens_s']:,.0f}", (row["tokens_s"], place), **beside)
    firsts = {row["batch"]: number for number, row in reversed(list(enumerate(ordered)))}
    names = [
        f"batch {row['batch']}   {row['variant']}" if firsts[row["batch"]] == number else str(row["variant"])
        for number, row in enumerate(ordered)
    ]
    axes.set(ylim=(max(places, default=0) + 0.6, -0.6), xticks=[], xlim=(0, None))
    axes.set_yticks(places, names, color=QUIET)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(LINE)
    return figure


def _colour(variant: str) -> str:
    if variant.startswith("generate"):
        return OTHER
    return COLOURS[SEMANTIC] if variant.startswith("full") else COLOURS[SPATIAL]
