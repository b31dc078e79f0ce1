"""What `headscope bench decode` does with a GPU, in a dry run, and with a folder of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headscope.cli.console import say

# What fits into a terminal: our name of a column, and the file's.
_SHOWN = {
    "shape": "shape",
    "batch": "batch",
    "variant": "variant",
    "tokens/s": "tokens_s",
    "ms a step": "ms_step",
    "at least": "ms_step_predicted",
    "first batch": "ms_step_first",
    "decoder": "decoder",
}


def measure(
    out: Path,
    shape: str,
    dtype: str,
    batch: int,
    device: str,
    *,
    steps: str | None = None,
    budget: float | None = None,
    dry: bool = False,
    tune: bool = False,
) -> None:
    """Run the steps into the folder `out`, then print the main figures.

    Args:
        out: the folder; results that it holds stay.
        shape: a name of SIZES.
        dtype: of the weights.
        batch: images generated together.
        device: as torch names it.
        steps: names with commas; all without.
        budget: seconds for all steps; what they need without.
        dry: only go through the code.
        tune: keep the settings of the attention kernel that are found best.
    """
    import torch

    from headscope.benchmarks.gpu import records
    from headscope.benchmarks.gpu.context import Context
    from headscope.benchmarks.gpu.runner import run_steps
    from headscope.benchmarks.gpu.steps import steps_of
    from headscope.models import resolve_device

    asked = steps_of(steps)
    if device == "cpu" or not torch.cuda.is_available():  # else left to the steps: asking here would take memory of the card
        resolve_device(device)
    context = Context("", out, shape, dtype, device, batch, dry=dry, tune=tune)
    run_steps(context, asked, budget or sum(step.seconds for step in asked), say)
    _show(records.read(out))
    say(f"results: {out}{', of a dry run: its times mean nothing' if dry else ''}")


def show_results(folders: Sequence[Path], out: Path | None) -> None:
    """Make one table and one page of folders of results, one card a row.

    Args:
        folders: of `measure`.
        out: CSV file, beside which the page stands; by default in the first folder, named by its shape.
    """
    import pandas as pd

    from headscope.benchmarks.gpu import records
    from headscope.benchmarks.gpu.table import COLUMNS, decode_rows, main_figures
    from headscope.reporting import write_gpu_page
    from headscope.storage import write_csv

    found: list[dict[str, Any]] = [one for folder in folders for one in records.read(folder)]
    rows = decode_rows(found)
    out = out or folders[0] / f"{rows[0]['shape'] if rows else 'results'}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    table = write_csv(pd.DataFrame(rows, columns=COLUMNS), out, float_format="%.5g")
    page = write_gpu_page(out.with_suffix(".html"), rows, main_figures(found), found)
    say(f"table: {table}, page: {page}")


def _show(found: list[dict[str, Any]]) -> None:
    """Sentences, then the main figures: a row a variant and batch."""
    import pandas as pd

    from headscope.benchmarks.gpu.table import decode_rows, main_figures
    from headscope.cli.tables import print_table

    for sentence in main_figures(found):
        say(sentence)
    if rows := decode_rows(found):
        table = pd.DataFrame(rows)
        print_table(pd.DataFrame({name: table[column] for name, column in _SHOWN.items()}), digits=4)
