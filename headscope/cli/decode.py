"""`headscope bench decode`: what a decoding step costs with transformers' caches and with ours.

On a CPU here, a step with each cache; with a GPU in decode_gpu.py, whole images in steps of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.console import progress, say
from headscope.cli.decode_gpu import measure, show_results

if TYPE_CHECKING:
    import pandas as pd


def decode(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="CSV file (default: decode.csv); with a GPU the folder (default: bench-decode)."),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Random decoder: tiny, laptop (default), janus-pro-1b (default on a GPU), janus-pro-7b.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or both (default: both; on a GPU bfloat16).")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Rows of the batch, several with commas (default: 1,16,64); with a GPU images (128).")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the image to time, beside the last (CPU).")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu: steps with each cache. cuda: steps of --steps.")] = "auto",
    steps: Annotated[
        str | None, typer.Option(help="GPU: card, kernels, tokens, tune, events, images, more; with commas (default: all).")
    ] = None,
    budget: Annotated[float | None, typer.Option(min=1, help="GPU: seconds for all steps (default: what they need).")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Only go through the code of the GPU's steps, on any machine.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="GPU: keep what step tune finds best for this card in the runtime's settings.json.")
    ] = False,
    render: Annotated[
        list[Path] | None, typer.Option(help="Make a CSV (--out) and a page of a folder of results; may be given again.")
    ] = None,
) -> None:
    """A decoding step with each cache, taking turns. Example: headscope bench decode -o decode.csv"""
    from headscope.benchmarks.shapes import SIZES
    from headscope.models import resolve_device
    from headscope.policy import dtype_name

    if render:
        show_results(render, out)
        return
    if device == "auto":  # one that is named is looked at last
        device = "cpu" if dry else resolve_device(device)
    gpu = dry or device != "cpu"
    if not gpu and (steps is not None or budget is not None or tune):
        raise typer.BadParameter("--steps, --budget and --tune: only with --device cuda or --dry.")
    shape = shape or ("dry" if dry else "janus-pro-1b" if gpu else "laptop")
    dtype = dtype or ("float32" if dry else "bfloat16" if gpu else "float32,bfloat16")
    batch = batch or ("1" if dry else "128" if gpu else "1,16,64")
    if shape not in SIZES:
        raise typer.BadParameter(f"--shape {shape}: expected one of {', '.join(SIZES)}.")
    dtypes = [dtype_name(part.strip()) for part in dtype.split(",")]
    if unknown := [part for part in dtypes if part not in ("float32", "bfloat16")]:
        raise typer.BadParameter(f"--dtype {unknown[0]}: expected float32 or bfloat16.")
    if gpu and len(dtypes) > 1:
        raise typer.BadParameter(f"--dtype {dtype}: one at a time with --device {device}.")
    batches = _batches(batch)
    if not gpu:
        _steps_with_each_cache(out or Path("decode.csv"), shape, dtypes, batches, rows, threads, device)
        return
    if len(batches) > 1:
        raise typer.BadParameter(f"--batch {batch}: one at a time with --device {device}; step more takes others.")
    if out is not None and out.suffix == ".csv":
        raise typer.BadParameter(f"--out {out}: a folder, with --device {device}.")
    measure(out or Path("bench-decode"), shape, dtypes[0], batches[0], device, steps=steps, budget=budget, dry=dry, tune=tune)


def _batches(text: str) -> list[int]:
    """Numbers from 1, with commas."""
    if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise typer.BadParameter(f"--batch {text}: expected numbers from 1, such as 16,64.")
    return [int(part) for part in text.split(",")]


def _steps_with_each_cache(
    out: Path, shape: str, dtypes: list[str], batches: list[int], rows: int, threads: int, device: str
) -> None:
    """On a CPU: the table, and from where on a fifth of the cache is faster."""
    import pandas as pd
    import torch

    from headscope.benchmarks.decoding import bench_decode, break_even
    from headscope.storage import check_writable, write_csv

    check_writable(out)
    torch.set_num_threads(threads)
    with progress() as tell:
        measured, curves = bench_decode(shape, dtypes, batches, rows=rows, device=device, progress=tell)
    table, by_rows = pd.DataFrame(measured), pd.DataFrame(curves)
    write_csv(table, out, float_format="%.5g")
    by_row = write_csv(by_rows, out.with_suffix(".rows.csv"), float_format="%.5g")
    _show(table)
    for found in break_even(curves):
        where = f"{found['dtype']}, batch {found['batch']}"
        if found["row"] is None:
            say(f"{where}: 20 % is not faster than the full cache at any length; keep the full cache.")
        else:
            gain = f"{found['gain']:.2f} times in the last row"
            say(f"{where}: 20 % is faster than the full cache from row {found['row'] + 1} of the image on, {gain}.")
    say(f"table: {out}, by row: {by_row}")


def _show(table: pd.DataFrame) -> None:
    """What fits into a terminal; all columns stand in the file."""
    from headscope.cli.tables import print_table

    left_out = ("shape", "cache_bytes", "peak_mb", "ms_median", "ms_least")
    print_table(table[[name for name in table.columns if name not in left_out]], digits=4)
