"""A model's name with settings behind it, which goes wherever a name goes: `FOLDER?features=FILE&fold_prefix=false`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

FEATURES, FOLD_PREFIX = "features", "fold_prefix"


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """A name without its settings, and these; a folder may have a question mark in its own name."""
    plain, mark, text = name.partition("?")
    if not mark or Path(name).exists():
        return name, {}
    return plain, dict(parse_qsl(text, keep_blank_values=True))


def join_name(plain: str, settings: Mapping[str, str]) -> str:
    """What `split_name` splits; a file of features by its absolute path."""
    lasting = {key: str(Path(value).absolute()) if key == FEATURES else value for key, value in settings.items()}
    return f"{plain}?{urlencode(lasting, safe='/', quote_via=quote)}" if lasting else plain


def with_settings(name: str, features: Path | None = None, fold_prefix: bool = True) -> str:
    """A name with what was asked for beside it.

    Args:
        name: of a model, which may have settings already.
        features: file with the features of captions.
        fold_prefix: whether a prefix whose keys are 0 is kept as one entry; where the folder does not say otherwise.
    """
    plain, settings = split_name(name)
    asked = {} if features is None else {FEATURES: str(features)}
    if not fold_prefix:
        asked[FOLD_PREFIX] = "false"
    return join_name(plain, {**settings, **asked})
