"""What the searches of a run folder found: policies by method and budget, and their losses on its unseen images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd

from headscope.errors import BudgetError, DataError
from headscope.policy import ModelShape, Policy, load_policy, parse_share
from headscope.run_folder import RunFolder
from headscope.runtime import FULL
from headscope.storage import read_json, read_table

_METHODS = {"method": str, "replay_kl": float, "cache_bytes": float}


def policies_of(run: str | Path, shape: ModelShape | None = None) -> dict[str, Policy]:
    """The searched policies and the presets of a run folder, by method and budget: `searched-20`, `h2o-20`.

    Args:
        run: the folder; searched once, or under several limits (`search RUN --keep 50,20%`).
        shape: of the model that is to run them; one of another is refused.

    Raises:
        DataError: the run has no policy yet, or its limit is no share of the cache.
    """
    found: dict[str, Policy] = {}
    for budget, (policy, search) in _places(RunFolder(Path(run))).items():
        files = {"searched": policy}
        files |= {path.stem: path for path in sorted((search / "presets").glob("*.safetensors"))}
        found |= {f"{method}-{budget}": load_policy(path, shape) for method, path in files.items()}
    return found


def losses_of(run: str | Path) -> pd.DataFrame:
    """The tables of methods of a run folder, one under the other.

    Args:
        run: the folder, see `policies_of`.

    Returns:
        Columns of methods.csv, among them `method`, `replay_kl` (nats a token, on unseen images) and `cache_bytes`; and
        `variant`, the name in `policies_of`, or `full`.

    Raises:
        DataError: see `policies_of`; or a table is missing or damaged.
    """
    folder, tables = RunFolder(Path(run)), []
    for budget, (policy, search) in _places(folder).items():
        file = (folder.path if policy == folder.policy else search) / "methods.csv"
        table = read_table(file, _METHODS)
        if table[["replay_kl", "cache_bytes"]].isna().any(axis=None):
            raise DataError(f"{file}: has a row without replay_kl or cache_bytes; expected both in every row.")
        tables.append(table.assign(variant=[name if name == FULL else f"{name}-{budget}" for name in table["method"]]))
    return pd.concat(tables)


def _places(folder: RunFolder) -> dict[str, tuple[Path, Path]]:
    """Budget (`20`) -> policy file and folder of its search: those of several limits, and the run's own."""
    found: dict[str, tuple[Path, Path]] = {}
    for path in sorted((folder.path / "policies").glob("keep-*.safetensors")):
        match = re.fullmatch(r"keep-(\d+(?:\.\d+)?)", path.stem)
        if match is not None:  # else somebody's copy
            found[f"{float(match[1]):g}"] = (path, folder.search / path.stem)
    if found and not folder.policy.is_file():
        return found
    return {_budget(folder): (folder.policy, folder.search), **found}


def _budget(folder: RunFolder) -> str:
    """`20` of a run that was searched for 20% or 0.2 of the cache."""
    run = folder.path
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder; give one that `headscope search` has finished.")
    if not folder.policy.is_file():
        raise DataError(f"{run}: holds no policy yet; run `headscope search {shlex.quote(str(run))}` first.")
    facts = read_json(folder.json)
    limit = facts.get("limit") if isinstance(facts, dict) else None
    text = limit.get("text") if isinstance(limit, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{folder.json}: names no limit; expected a run that `headscope search` has finished.")
    try:
        return f"{100 * parse_share(text):g}"
    except BudgetError:
        raise DataError(
            f"{run}: was searched with {text}, and policies are named by a share such as 20%; give its policy by its file "
            f"instead, {folder.policy}."
        ) from None
