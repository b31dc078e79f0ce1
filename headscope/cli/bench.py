"""`headscope bench`: what things cost on this machine."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import progress, say
from headscope.cli.decode import decode

app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")


app.command("decode")(decode)


@app.callback()
def _group() -> None:
    """Measure on this machine."""


@app.command("kernels")
def kernels(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("kernels.csv"),
    few: Annotated[bool, typer.Option("--few", help="Only heads of 128 numbers in tiles of 64.")] = False,
) -> None:
    """Compile the GPU's kernels for an H100 without one, and count. Example: headscope bench kernels -o kernels.csv"""
    if os.environ.get("TRITON_INTERPRET"):
        raise typer.BadParameter("TRITON_INTERPRET is set, so kernels are not compiled; unset it.")
    if find_spec("triton") is None:
        raise typer.BadParameter("Triton is not installed; install the triton that torch asks for.")
    import pandas as pd

    from headscope.benchmarks.gpu.compiled import table
    from headscope.storage import check_writable, write_csv

    check_writable(out)
    say("compiling; all of them take some minutes ...")
    write_csv(pd.DataFrame(table(few)), out)
    say(f"table: {out}")


@app.command("trace")
def trace(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("trace.csv"),
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens, prompt included; may be given again.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="plain, tracer, tracer_full, maps (default: all).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each; the least time counts.")] = 5,
    layers: Annotated[int, typer.Option(min=1)] = 8,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    head_dim: Annotated[int, typer.Option(min=2)] = 64,
    intermediate: Annotated[int, typer.Option(min=1)] = 1376,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time and memory of tracing beside the plain pass. Example: headscope bench trace -o trace.csv"""
    import torch

    from headscope.benchmarks.tracing import VARIANTS, Shape, bench_tracing
    from headscope.cli.tables import print_table
    from headscope.policy import dtype_name
    from headscope.storage import write_csv

    if unknown := [name for name in variant or () if name not in VARIANTS]:
        raise typer.BadParameter(f"variant {unknown[0]}: expected {', '.join(VARIANTS)}.")
    dtype = dtype_name(dtype)
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"dtype {dtype}: expected float32 or bfloat16.")
    torch.set_num_threads(threads)
    shape = Shape(layers, heads, head_dim, intermediate, dtype)
    with progress() as tell:
        table = bench_tracing(
            tokens or [600, 2400],
            shape,
            variants=variant or VARIANTS,
            repeats=repeats,
            progress=tell,
        )
    write_csv(table, out, float_format="%.4g")
    print_table(table)
    say(f"table: {out}")
