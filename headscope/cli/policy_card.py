"""`headscope policy card`: a policy as a page to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.console import PolicyFile, say


def card(
    file: PolicyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The Markdown file to write; its picture stands beside it.")] = Path(
        "card.md"
    ),
) -> None:
    """What it is made for, keeps and loses, in Markdown. Example: headscope policy card stickers-20 -o card.md"""
    from headscope.policy import load_policy
    from headscope.reporting import write_card

    written, picture = write_card(load_policy(file), out, file.name if file.is_absolute() else str(file))
    say(f"card: {written}")
    say(f"picture: {picture}")
