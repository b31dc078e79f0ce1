"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.table import Column, Table

from headscope import words
from headscope.cli.console import lines, say
from headscope.storage import read_table


def print_table(frame: pd.DataFrame, bold: Sequence[str] = (), digits: int = 3) -> None:
    """Print a table, what is missing as nothing.

    Args:
        frame: its columns are the titles; a text stands as it is.
        bold: rows to set off, by what their first column says.
        digits: of numbers that are not whole.
    """
    table = Table(*(Column(str(name), no_wrap=True) for name in frame.columns), box=None)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value, digits) for value in row), style="bold" if row[0] in bold else None)
    lines.print(table)


def _cell(value: object, digits: int) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return ""
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def methods_table(path: Path, quick: bool = False) -> None:
    """Print methods.csv, and say plainly whether the searched policy is the best at its bytes."""
    numbers = ("kept_ratio", "replay_kl", "free_kl", "kl_low", "kl_high", "top1", "cache_bytes", "ms_per_step")
    methods = read_table(path, {"method": str, "budget": object, "bits": object, **dict.fromkeys(numbers, float)})
    between = zip(methods["kl_low"].clip(lower=0), methods["kl_high"], strict=True)
    shown = pd.DataFrame(
        {
            "method": methods["method"],
            "budget": methods["budget"].astype(str),
            "bits": methods["bits"].astype(str),
            "kept": methods["kept_ratio"].map("{:.1%}".format),
            "replay KL": [f"{kl:.4f}".replace("-0.0000", "0.0000") for kl in methods["replay_kl"]],  # rounding may go below 0
            "free KL": [f"{kl:.4f}".replace("-0.0000", "0.0000") if kl == kl else "" for kl in methods["free_kl"]],
            "95 %": [f"{low:.3f}-{high:.3f}" for low, high in between],
            "top-1": methods["top1"].map("{:.1%}".format),
            "cache": methods["cache_bytes"].map(words.size),
            "ms": [f"{ms:.1f}" if ms == ms else "" for ms in methods["ms_per_step"]],
        }
    )
    print_table(shown, bold=("searched",))
    say(words.verdict(methods, quick))
    if not quick and (told := words.classes_verdict(methods)):
        say(told)
