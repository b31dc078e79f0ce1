"""`headscope bench decode`: what a decoding step costs with transformers' caches and with ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli.console import progress, say

if TYPE_CHECKING:
    import pandas as pd


def decode(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("decode.csv"),
    shape: Annotated[
        str | None, typer.Option(help="Random decoder: tiny, laptop (default), janus-pro-1b (default on a GPU), janus-pro-7b.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or both (default: both; on a GPU bfloat16).")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Rows of the batch, several with commas (default: 1,16,64; on a GPU 32,64,128).")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the image to time, beside the last (CPU).")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu: steps with each cache. cuda: whole images.")] = "auto",
) -> None:
    """A decoding step with each cache, taking turns. Example: headscope bench decode -o decode.csv"""
    import pandas as pd
    import torch

    from headscope.benchmarks.decoding import bench_decode, break_even
    from headscope.benchmarks.shapes import SIZES
    from headscope.models import resolve_device
    from headscope.policy import dtype_name
    from headscope.storage import check_writable, write_csv

    device = resolve_device(device) if device == "auto" else device  # one that is named is looked at last
    gpu = device != "cpu"
    shape = shape or ("janus-pro-1b" if gpu else "laptop")
    dtype = dtype or ("bfloat16" if gpu else "float32,bfloat16")
    batch = batch or ("32,64,128" if gpu else "1,16,64")
    if shape not in SIZES:
        raise typer.BadParameter(f"--shape {shape}: expected one of {', '.join(SIZES)}.")
    dtypes = [dtype_name(part.strip()) for part in dtype.split(",")]
    if unknown := [part for part in dtypes if part not in ("float32", "bfloat16")]:
        raise typer.BadParameter(f"--dtype {unknown[0]}: expected float32 or bfloat16.")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in batch.split(",")):
        raise typer.BadParameter(f"--batch {batch}: expected numbers from 1, such as 16,64.")
    if gpu and len(dtypes) > 1:
        raise typer.BadParameter(f"--dtype {dtype}: one at a time with --device {device}.")
    check_writable(out)
    batches = [int(part) for part in batch.split(",")]
    if gpu:
        _whole_images(out, shape, dtypes[0], batches, device)
        return
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


def _whole_images(out: Path, shape: str, dtype: str, batches: list[int], device: str) -> None:
    """On a GPU: transformers' generate, our full cache, and a fifth of it; a table and run.json beside it."""
    import pandas as pd
    import torch

    from headscope.benchmarks.generating import bench_generate
    from headscope.models import resolve_device
    from headscope.provenance import machine, versions
    from headscope.storage import write_csv, write_json

    resolve_device(device)
    facts = machine(torch.device(device), torch.bfloat16)
    settings = {"shape": shape, "dtype": dtype, "batches": batches, "guidance": 5.0}
    write_json(
        out.with_suffix(".run.json"),
        {"machine": facts, "versions": versions(), "settings": settings},
    )

    def written(rows: list[dict[str, Any]]) -> None:
        write_csv(pd.DataFrame(rows), out, float_format="%.5g")

    with progress() as tell:
        table = bench_generate(shape, batches, dtype=dtype, device=device, progress=tell, after=written)
    _show(pd.DataFrame(table))
    say(f"table: {out}, machine: {out.with_suffix('.run.json')}")
