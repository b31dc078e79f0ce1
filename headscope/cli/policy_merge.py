"""`headscope policy merge`: edits of single layers and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Keep, LimitBatch, Memory, PolicyFile, pasted, say


def merge(
    base: PolicyFile,
    edits: Annotated[list[Path], typer.Argument(metavar="EDITS...", help="TOML files of [[edit]] tables; later ones win.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy file to write.")],
    keep: Keep = None,
    memory: Memory = None,
    batch: LimitBatch = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help="Made for no limit any more.")] = False,
) -> None:
    """Change single layers and heads. Example: headscope policy merge stickers-20 edits.toml -o mine.safetensors"""
    if no_limit and (keep is not None or memory is not None):
        raise typer.BadParameter("give --no-limit, or a limit.")
    from headscope.cli.policy_limit import limit_for
    from headscope.policy import load_policy, merge as merged_from, read_edits

    policy = load_policy(base)
    wanted = [edit for file in edits for edit in read_edits(file)]
    limit = limit_for(policy, keep, memory, batch)
    limit = None if no_limit else limit or policy.limit
    merged = merged_from(policy, wanted, limit, base.name)
    spec = policy.spec() if limit is None else limit.spec
    before, after = spec.bytes_of(policy), spec.bytes_of(merged)
    for edit in wanted:
        if edit.source is not None and policy.shape.weights != edit.source.shape.weights != "":
            say(f"{edit.where}: {edit.name} was made for other weights ({edit.source.shape.weights[:16]}).")
    merged.save(out)
    say(f"bytes: {before:,} before, {after:,} now ({after / spec.full_bytes:.1%} of the plain cache) for {spec.words()}")
    say("limit: none" if limit is None else f"limit: {limit.bytes:,} bytes")
    say(f"policy: {out}")
    say(f"next: {pasted('headscope', 'policy', 'measure', out, '--on', 'RUN')}")
