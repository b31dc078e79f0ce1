"""`headscope budget`: what fits into the memory that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Batch, Device, Features, FoldPrefix, KeepOf, ModelName, say
from headscope.cli.settings import LIMIT, limit_from


def budget(
    model: ModelName,
    memory: Annotated[str | None, typer.Option(help="Bytes for the cache, such as 12GiB (default: what is free here).")] = None,
    batch: Batch = LIMIT.batch,
    policy: Annotated[list[Path] | None, typer.Option(help="A policy file; may be given again.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the cache (default: the model's here).")] = None,
    guidance: Annotated[
        bool | None, typer.Option("--guidance/--no-guidance", help="Two streams an image, or one (default: the model's).")
    ] = None,
    prefix: Annotated[int | None, typer.Option(min=0, help="Tokens of the longest prompt (default: of its own).")] = None,
    keep_of: KeepOf = "all",
    features: Features = None,
    fold_prefix: FoldPrefix = True,
    device: Device = "auto",
) -> None:
    """How many images fit, and how much of the cache a batch may keep. Example: headscope budget stickers --memory 64MiB"""
    import pandas as pd

    from headscope import words
    from headscope.cli.tables import print_table
    from headscope.models import load_model, with_settings
    from headscope.pipeline import default_prompts, free_memory, what_fits
    from headscope.policy import load_policy, parse_size

    model = with_settings(model, features, fold_prefix)
    loaded = load_model(model, device=device)
    longest = prefix if prefix is not None else int(loaded.tokenize(default_prompts(model)).ids.shape[1])
    streams = 1 + (loaded.guidance != 1.0 if guidance is None else guidance)
    room = parse_size(memory) if memory is not None else free_memory(str(loaded.device))
    limit = limit_from(None, str(room), keep_of, batch=batch, dtype=dtype, streams=streams)
    spec = limit.spec(loaded.shape, longest, dtype=str(loaded.dtype), streams=streams)
    fits = what_fits(spec, room, {path.stem: load_policy(path, loaded.shape) for path in policy or []})
    counted = f"{streams} stream{'s' if streams > 1 else ''}"
    say(f"{loaded.shape.name}: prompts of {longest} tokens, {loaded.shape.geometry.tokens} image tokens, {counted}")
    rows = [(row.name, f"{row.kept:.1%}", f"{row.bytes:,}", f"{row.images:,}") for row in fits.rows]
    print_table(pd.DataFrame(rows, columns=["cache", "kept", "bytes per image", f"images in {words.size(room)}"]))
    say(fits.sentence)
    if fits.keep is not None:
        say(f"next: headscope search RUN --keep {fits.keep}")
