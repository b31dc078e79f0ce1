"""The records of settings that options fill in, and the defaults that these take from them.

Apart from console.py, because the records need pydantic and most commands do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from headscope.tuning import LimitConfig, PromptConfig, RunConfig, SearchConfig

SEARCH, PROMPTS, LIMIT = SearchConfig(), PromptConfig(), LimitConfig()
BATCH_SIZE = RunConfig.model_fields["batch_size"].default


def limit_from(keep: str | None, memory: str | None, keep_of: str, **more: Any) -> LimitConfig:
    """`--keep` or `--memory`, and what `--keep-of` counts.

    Raises:
        typer.BadParameter: both, or something else than `all` or `image`.
    """
    if keep is not None and memory is not None:
        raise typer.BadParameter("give --keep or --memory, not both.")
    if keep_of not in ("all", "image"):
        raise typer.BadParameter(f"--keep-of {keep_of}: expected all or image.")
    return LimitConfig(keep=keep, memory=memory, count_prefix=keep_of == "all", **more)


def prompts_from(file: Path | None, calibration: int, unseen: int) -> PromptConfig:
    """`--prompts`, `--calibration` and `--unseen`."""
    return PROMPTS.replace(file=None if file is None else str(file), calibration=calibration, unseen=unseen)
