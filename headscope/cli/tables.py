"""Tables on the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Column, Table

from headscope.cli.console import lines, say
from headscope.storage import read_table

PRESETS_BEATEN = "The searched policy loses less than every preset at the same bytes, on prompts it never saw."


def methods_table(path: Path, quick: bool = False) -> None:
    """Print methods.csv, and say plainly whether the searched policy is the best at its bytes."""
    numbers = ("kept_ratio", "replay_kl", "kl_low", "kl_high", "top1", "cache_bytes", "ms_per_step")
    methods = read_table(path, {"method": str, "budget": object, **dict.fromkeys(numbers, float)})
    names = ("method", "budget", "kept", "replay KL", "95 %", "top-1", "KiB", "ms")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None)
    for row in methods.itertuples(index=False):
        table.add_row(
            str(row.method),
            str(row.budget),
            f"{row.kept_ratio:.1%}",
            f"{row.replay_kl:.4f}".replace("-0.0000", "0.0000"),  # rounding may go below nothing
            f"{max(row.kl_low, 0):.3f}-{row.kl_high:.3f}",
            f"{row.top1:.1%}",
            f"{row.cache_bytes / 1024:,.0f}",
            f"{row.ms_per_step:.1f}",
            style="bold" if row.method == "searched" else None,
        )
    lines.print(table)
    if quick:
        say("A dry run: the presets were not swept, so this table compares nothing.")
        return
    from headscope.reporting.words import classes

    say(verdict(methods))
    if told := classes(methods):
        say(told)


def verdict(methods: pd.DataFrame) -> str:
    """One honest sentence about the searched policy."""
    losses = methods.set_index("method")["replay_kl"]
    presets = losses.drop(["full", "searched"], errors="ignore")
    better = presets[presets <= losses["searched"]]
    if better.empty:
        return PRESETS_BEATEN
    names = ", ".join(str(name) for name in better.index)
    return f"The searched policy does not win here: {names} loses as little or less on unseen prompts at the same bytes."
