"""`headscope budget`: what fits into the memory that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Batch, Device, KeepOf, ModelName, say
from headscope.cli.search import DTYPES


def budget(
    model: ModelName,
    memory: Annotated[str | None, typer.Option(help="Bytes for the cache, such as 12GiB (default: what is free here).")] = None,
    batch: Batch = 1,
    policy: Annotated[list[Path] | None, typer.Option(help="A policy file; may be given again.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the cache (default: the model's here).")] = None,
    guidance: Annotated[bool, typer.Option("--guidance/--no-guidance", help="Two streams an image, or one.")] = True,
    prefix: Annotated[int | None, typer.Option(min=0, help="Tokens of the longest prompt (default: of its own).")] = None,
    keep_of: KeepOf = "all",
    device: Device = "auto",
) -> None:
    """How many images fit, and how much of the cache a batch may keep. Example: headscope budget stickers --memory 64MiB"""
    import pandas as pd

    from headscope import words
    from headscope.cli.tables import print_table
    from headscope.models import load_model
    from headscope.pipeline.budgets import free_memory, what_fits
    from headscope.pipeline.prompts import default_prompts
    from headscope.policy import CacheSpec, load_policy, parse_size

    loaded = load_model(model, device=device)
    longest = prefix if prefix is not None else int(loaded.encode(default_prompts(model)).ids.shape[1])
    room = parse_size(memory) if memory is not None else free_memory(str(loaded.device))
    if keep_of not in ("all", "image"):
        raise typer.BadParameter(f"--keep-of {keep_of}: expected all or image.")
    spec = CacheSpec(
        loaded.shape,
        longest,
        batch=batch,
        streams=1 + guidance,
        dtype=DTYPES.get(dtype, dtype) if dtype else str(loaded.dtype),
        count_prefix=keep_of == "all",
    )
    fits = what_fits(spec, room, {path.stem: load_policy(path, loaded.shape) for path in policy or []})
    say(
        f"{loaded.shape.name}: prompts of {longest} tokens, {loaded.shape.geometry.tokens} image tokens, {1 + guidance} streams"
    )
    rows = [(row.name, f"{row.kept:.1%}", f"{row.bytes:,}", f"{row.images:,}") for row in fits.rows]
    print_table(pd.DataFrame(rows, columns=["cache", "kept", "bytes per image", f"images in {words.size(room)}"]))
    say(fits.sentence)
