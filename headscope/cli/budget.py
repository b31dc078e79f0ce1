"""`headscope budget`: what fits into the memory that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Batch, Device, KeepOf, ModelName, lines, say
from headscope.cli.search import DTYPES


def budget(
    model: ModelName,
    memory: Annotated[str | None, typer.Option(help="Bytes for the cache, such as 12GiB (default: what is free here).")] = None,
    batch: Batch = 1,
    policy: Annotated[list[Path] | None, typer.Option(help="A policy file; may be given again.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the cache (default: the model's here).")] = None,
    guidance: Annotated[bool, typer.Option("--guidance/--no-guidance", help="Two streams a picture, or one.")] = True,
    prefix: Annotated[int | None, typer.Option(min=0, help="Tokens of the longest prompt (default: of its own).")] = None,
    keep_of: KeepOf = "all",
    device: Device = "cpu",
) -> None:
    """How many pictures fit, and how much of the cache a batch may keep. Example: headscope budget stickers --memory 64MiB"""
    from rich.table import Table

    from headscope.models import load_model
    from headscope.pipeline.budgets import free_memory, what_fits
    from headscope.pipeline.prompts import default_prompts
    from headscope.policy.files import load_policy
    from headscope.policy.footprint import parse_size

    loaded = load_model(model, device=device)
    longest = prefix if prefix is not None else int(loaded.encode(default_prompts(model)).ids.shape[1])
    room = parse_size(memory) if memory is not None else free_memory(device)
    fits = what_fits(
        loaded.shape,
        room,
        batch=batch,
        policies={path.stem: load_policy(path, loaded.shape) for path in policy or []},
        prefix=longest,
        streams=1 + guidance,
        dtype=DTYPES.get(dtype, dtype) if dtype else str(loaded.dtype).removeprefix("torch."),
        of=keep_of,
    )
    say(
        f"{loaded.shape.name}: prompts of {longest} tokens, {loaded.shape.geometry.tokens} image tokens, {1 + guidance} streams"
    )
    table = Table("cache", "kept", "bytes a picture", f"pictures in {_size(room)}", box=None)
    for row in fits.rows:
        table.add_row(row.name, f"{row.kept:.1%}", f"{row.bytes:,}", f"{row.pictures:,}")
    lines.print(table)
    say(fits.sentence)


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"
