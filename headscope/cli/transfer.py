"""`headscope policy transfer`: a policy for another model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import Keep, KeepOf, Memory, pasted, say
from headscope.cli.settings import limit_from


def transfer(
    policy: Annotated[list[Path], typer.Argument(metavar="POLICY...", help="Files or names; several teach together.")],
    to: Annotated[str, typer.Option(help="The other model: a bundled one, a folder, FILE.py:FUNCTION, or a hub id.")],
    trace: Annotated[Path | None, typer.Option(help="A run of that model with a trace: the best kind of transfer.")] = None,
    head_map: Annotated[
        Path | None, typer.Option("--map", help="A score a KV head: CSV, heads.safetensors, janus-pro-1b or janus-pro-7b.")
    ] = None,
    keep: Keep = None,
    memory: Memory = None,
    keep_of: KeepOf = "all",
    prefix: Annotated[int | None, typer.Option(min=0, help="Tokens of the longest prompt there.")] = None,
    source: Annotated[Path | None, typer.Option(help="A run of the policy's own model, where its file has no rule.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write (default: MODEL-20.safetensors).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that stands there.")] = False,
) -> None:
    """Make a policy for another model, unmeasured. Example: headscope policy transfer stickers-20 --to stickers-scenes"""
    from headscope.pipeline import transfer as transferred
    from headscope.storage import check_writable

    asked = None if keep is None and memory is None and keep_of == "all" else limit_from(keep, memory, keep_of)
    if out is not None:
        check_writable(out)
    made = transferred(policy, to, limit=asked, trace=trace, head_map=head_map, source=source, prefix=prefix)
    assert made.limit is not None
    spec, facts = made.spec(), made.provenance["transferred"]
    size = f"{100 * made.limit.share:g}" if made.limit.share else str(made.limit.bytes)
    place = made.save(out or Path(f"{made.shape.name.lower()}-{size}.safetensors"), overwrite=overwrite)
    say(f"transferred {facts['kind']} from {facts['from']}, by {facts['by']}")
    if not facts["rule"]:
        say(
            "the policy's file carries no rule, so heads take the numbers of the nearest ones: better search it again, or name "
            "a run of its model with a sensitivity table as `source`"
        )
    say(f"bytes  {spec.bytes_of(made):,} of {spec.full_bytes:,} ({spec.share_of(made):.1%}) for {spec.words()}")
    say(f"not measured on {made.shape.name} yet; policy: {place}")
    say(f"next: {pasted('headscope', 'policy', 'measure', place, '--on', trace or 'RUN')}")
