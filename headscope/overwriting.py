"""What headscope writes into a run folder, by name: `overwrite` removes that, and nothing that is somebody's own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headscope.errors import DataError
from headscope.policy import PRESETS

# Files that are being written (see headscope.storage), left by a process that was killed.
_UNFINISHED = r"\..+\.\d+\.(part|probe)(\.[^.]+)?"


@dataclass(frozen=True)
class Written:
    """The files of a folder that are headscope's, and the folders in it that hold such: regular expressions of whole names."""

    files: str
    folders: Mapping[str, Written] = field(default_factory=dict)


_PARTS = Written(r"\d{6}\.parquet|curves-\d{4}\.safetensors")
_TRACE = Written(r"(heads|prefix|samples)\.parquet|curves\.safetensors|trace\.json", {"parts": _PARTS})
_PRESETS = Written(rf"({'|'.join(map(re.escape, (*PRESETS, 'linear', 'kvtuner')))})(\+bits)?\.safetensors")
_DB = r"db(-wal|-shm|-journal)?"
_STUDY = rf"(study|front)\.{_DB}|study\.journal(\.lock.*)?"
_TABLES = r"presets\.(json|parquet)|trials\.parquet|search\.json|methods\.csv|kl_by_row\.parquet"
_TABLE = r"sensitivity(-\d+)?((-groups|-fisher)?\.parquet|-fisher\.part\.json)|usual\.safetensors"
_SEARCH = Written(rf"{_STUDY}|{_TABLES}|{_TABLE}", {"presets": _PRESETS})
_SHARE = r"\d+(\.\d+)?"
_KEEP = rf"keep-{_SHARE}"
_BENCH = Written(
    rf"unseen\.json|sensitivity\.json|{_TABLE}",
    {
        _KEEP: Written(rf"presets\.(json|parquet)|[a-z_]+\d*(-[a-z-]+)?-\d+(-whole)?\.({_DB}|parquet|safetensors)"),
        r"prompts-\d+": Written(_TABLE),
    },
)
_IMAGES = Written(r"sheet\.png|(pictures|images)\.parquet", dict.fromkeys(("full", "searched"), Written(r"\d{3,}\.png")))
_FIGURES = Written(
    r"(map-\w+|footprints|decay|layers|pairs|dendrogram|streams|stability|ablation|needs|L\d+H\d+)\.(png|svg|pdf)",
)
_TOP = (
    r"prompts\.json|(calibration|unseen|kl_by_row|sensitivity)\.parquet|(heads|policy)\.safetensors|front\.svg|report\.html|"
    r"(methods|stability|ablation|needs|budgets|smallest|front)\.csv"
)


def clear_run(path: Path) -> None:
    """Remove what headscope wrote into the run folder `path`, and the folders that this leaves empty; `path` itself stays.

    A link is never followed: one that has a name of ours is removed as a link. What `path` itself links to is cleared.

    Raises:
        DataError: `path` is the working folder, the home folder, or one above them; or a file that cannot be removed.
    """
    run = path.resolve()
    for what, kept in (("working", Path.cwd()), ("home", Path(os.path.expanduser("~")))):
        kept = kept.resolve()
        if run == kept or run in kept.parents:
            place = f"the {what} folder" if run == kept else f"a folder above the {what} folder"
            raise DataError(f"{path}: is {place}, which `overwrite` does not clear; choose another folder for `out`.")
    try:
        clear(run, _written_in(run))
        (run / "run.json").unlink(missing_ok=True)  # last: whoever is stopped before can give the same command again
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot be removed ({error.strerror or error}); choose another folder for `out`."
        ) from error


def clear_trace(path: Path) -> None:
    """Remove a trace and its folder, if they are there; what is not headscope's stays, and then its folder too.

    Raises:
        OSError: a file that cannot be removed.
    """
    if path.is_dir():
        clear(path, _TRACE)
        remove_empty(path)


def clear(folder: Path, written: Written) -> None:
    """Remove the files that `written` names, and the folders that are empty then.

    Raises:
        OSError: a file that cannot be removed.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        inside = next((each for name, each in written.folders.items() if re.fullmatch(name, entry.name)), None)
        if entry.is_dir(follow_symlinks=False):
            if inside is not None:
                clear(Path(entry.path), inside)
                remove_empty(Path(entry.path))
        elif re.fullmatch(rf"{written.files}|{_UNFINISHED}", entry.name) or (entry.is_symlink() and inside is not None):
            os.unlink(entry.path)


def remove_empty(folder: Path) -> None:
    """Remove a folder unless something lies in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _written_in(run: Path) -> Written:
    """The names of a whole run; searches of study definitions are named by their policies, and known by their presets."""
    search = run / "search"
    found = sorted(search.iterdir()) if search.is_dir() and not search.is_symlink() else []
    defined = [re.escape(each.name) for each in found if (each / "presets.json").is_file()]
    policies = "|".join([rf"(keep|front)-{_SHARE}", *defined])
    return Written(
        _TOP,
        {
            "trace": _TRACE,
            "trace-shards": Written("(?!)", {r"\d{3,}": _TRACE}),
            "search": Written(_SEARCH.files, {**_SEARCH.folders, **dict.fromkeys((_KEEP, *defined), _SEARCH)}),
            "policies": Written(rf"({policies})(\.safetensors)?"),
            **dict.fromkeys(("pictures", "images"), _IMAGES),
            "figures": _FIGURES,
            "bench": _BENCH,
        },
    )
