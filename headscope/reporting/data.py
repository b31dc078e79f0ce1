"""Everything a report shows, read from the files of a run folder; what is missing is None and its section says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from headscope.errors import DataError, HeadscopeError
from headscope.heads import Heads
from headscope.policy import Policy, load_policy
from headscope.storage import read_json
from headscope.tracing import TraceDataset


@dataclass(frozen=True)
class RunData:
    """The run folder, read.

    Attributes:
        run: run.json. prompts: prompts.json.
        heads: classes. curves: lag_mass and footprint of the trace. policy: the searched one.
        methods, by_row, trials, pictures: tables. search: search.json.
    """

    path: Path
    run: dict[str, Any]
    prompts: dict[str, list[str]]
    heads: Heads | None
    curves: dict[str, torch.Tensor] | None
    policy: Policy | None
    methods: pd.DataFrame | None
    by_row: pd.DataFrame | None
    trials: pd.DataFrame | None
    search: dict[str, Any] | None
    pictures: pd.DataFrame | None


def read_run(path: str | Path) -> RunData:
    """Read a run folder.

    Raises:
        DataError: run.json is missing or damaged, or a file that is there cannot be read.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise DataError(f"{path}: no run.json here, so this is no run folder; make one with `headscope run`.")
    run = read_json(path / "run.json")
    if not isinstance(run, dict) or not isinstance(run.get("model"), dict) or "name" not in run["model"]:
        raise DataError(f"{path / 'run.json'}: damaged, it names no model; run again with --overwrite.")
    prompts = read_json(path / "prompts.json") if (path / "prompts.json").is_file() else {}
    traced = (path / "trace" / "trace.json").is_file() and read_json(path / "trace" / "trace.json").get("complete")
    return RunData(
        path=path,
        run=run,
        prompts=prompts,
        heads=Heads.load(path / "heads.parquet") if (path / "heads.parquet").is_file() else None,
        curves=TraceDataset(path / "trace").curves() if traced else None,
        policy=_policy(path / "policy.safetensors"),
        methods=_table(path / "methods.csv"),
        by_row=_table(path / "kl_by_row.parquet"),
        trials=_table(path / "search" / "trials.parquet"),
        search=read_json(path / "search" / "search.json") if (path / "search" / "search.json").is_file() else None,
        pictures=_table(path / "pictures" / "pictures.parquet"),
    )


def _policy(path: Path) -> Policy | None:
    return load_policy(path) if path.is_file() else None


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except HeadscopeError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run the step again.") from None
