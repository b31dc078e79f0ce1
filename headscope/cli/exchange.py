"""`headscope policy export` and `import`: policies in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import pasted, say


def export(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A policy file, or a shipped one by name.")],
    to: Annotated[str, typer.Option("--to", help="json, duo_attention, kvpress, tensorrt_llm or vllm.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File, or for duo_attention a folder.")],
) -> None:
    """Write a policy for another tool. Example: headscope policy export stickers-20 --to duo_attention -o pattern"""
    from headscope.policy import export_policy, load_policy

    written = export_policy(load_policy(policy), out, to)
    for sentence in written.sentences():
        say(sentence)
    say(f"export: {written.path}")
    if written.notes_path != written.path:
        say(f"notes: {written.notes_path}")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file or folder of another tool.")],
    source: Annotated[
        str | None, typer.Option("--from", help="json, duo_attention or headkv (default: what the file says it is).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="What it is for: a bundled model, a folder, FILE.py:FUNCTION, or a hub id.")
    ] = None,
    prefix: Annotated[
        int | None, typer.Option(min=0, help="Longest prompt in tokens; duo_attention and headkv need it.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Size by the scores in the file: a share such as 20%, or bytes for one image.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy file.")] = Path("policy.safetensors"),
) -> None:
    """Read a policy of another tool. Example: headscope policy import pattern --model stickers --prefix 13"""
    from headscope.models import load_model
    from headscope.policy import CacheSpec, Limit, import_policy

    loaded = None if model is None else load_model(model, device="cpu")
    limit = None
    if keep is not None:
        if loaded is None or prefix is None:
            raise typer.BadParameter("--keep is counted for a model and its longest prompt: give --model and --prefix too.")
        limit = Limit.parse(keep, CacheSpec.of(loaded, prefix))
    policy = import_policy(file, source, None if loaded is None else loaded.shape, prefix, limit)
    path = policy.save(out)
    spec = policy.spec()
    say(f"read       {policy.provenance.get('method', 'hand')} for {policy.shape.name}")
    say(f"bytes      {spec.bytes_of(policy):,} of {spec.full_bytes:,} ({spec.share_of(policy):.1%}) for {spec.words()}")
    say(f"policy: {path}")
    say(f"next: {pasted('headscope', 'policy', 'show', path)}")
