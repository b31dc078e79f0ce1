"""Policies that come with headscope, by name: `stickers-20` is policies/stickers-20.safetensors."""

from __future__ import annotations

from pathlib import Path

from headscope.reading import is_there

_PACKAGE = Path(__file__).parents[1]
# In the wheel they lie inside the package, in a checkout beside it.
FOLDERS = (_PACKAGE / "policies", _PACKAGE.parent / "policies")


def shipped() -> dict[str, Path]:
    """Name -> file of every policy that comes with headscope."""
    return {path.stem: path for folder in reversed(FOLDERS) for path in sorted(folder.glob("*.safetensors"))}


def policy_file(name: str | Path) -> Path:
    """The file that a user means: a path, or the name of a shipped policy where there is no such file."""
    path = Path(name)
    if is_there(path) or path.suffix or len(path.parts) != 1:
        return path
    return shipped().get(str(name), path)
