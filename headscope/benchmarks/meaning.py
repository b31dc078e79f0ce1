"""StickerEval by method and budget, and whether replay KL predicts it: an evaluation joined with the runs of its policies."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from headscope.errors import DataError
from headscope.policy import Policy, load_policy
from headscope.policy.policy import ModelShape
from headscope.runtime.batches import FULL, OTHER_SEED
from headscope.storage import read_json, read_parquet, read_table

COLUMNS = ["method", "budget", "category", "score", "low", "high", "replay_kl", "cache_bytes"]
_BOOTSTRAPS = 2000
_SCORES = {**dict.fromkeys(("variant", "category"), str), **dict.fromkeys(("score", "low", "high"), float)}
_PICTURES = {**dict.fromkeys(("variant", "tag"), str), **dict.fromkeys(("prompt", "correct"), object)}
_METHODS = {"method": str, "replay_kl": float, "cache_bytes": float}


def policies_of(run: str | Path, shape: ModelShape | None = None) -> dict[str, Policy]:
    """The searched policies and the presets of a run folder, by method and budget: `searched-20`, `h2o-20`.

    Raises:
        DataError: the run has no policy yet, or its limit is no share of the cache.
    """
    found: dict[str, Policy] = {}
    for budget, (policy, search) in _places(Path(run)).items():
        files = {"searched": policy}
        files |= {path.stem: path for path in sorted((search / "presets").glob("*.safetensors"))}
        found |= {f"{method}-{budget}": load_policy(path, shape) for method, path in files.items()}
    return found


def _places(run: Path) -> dict[str, tuple[Path, Path]]:
    """Budget (`20`) -> policy file and folder of its search: those of `search RUN --keep 50,20%`, and the run's own."""
    found: dict[str, tuple[Path, Path]] = {}
    for path in sorted((run / "policies").glob("keep-*.safetensors")):
        match = re.fullmatch(r"keep-(\d+(?:\.\d+)?)", path.stem)
        if match is not None:  # else somebody's copy
            found[f"{float(match[1]):g}"] = (path, run / "search" / path.stem)
    if found and not (run / "policy.safetensors").is_file():
        return found
    return {_budget(run): (run / "policy.safetensors", run / "search"), **found}


def _budget(run: Path) -> str:
    """`20` of a run that was searched with --keep 20%."""
    if not run.is_dir():
        raise DataError(f"{run}: no such run folder; give one that `headscope search` has finished.")
    if not (run / "policy.safetensors").is_file():
        raise DataError(f"{run}: holds no policy yet; run `headscope search {shlex.quote(str(run))}` first.")
    facts = read_json(run / "run.json")
    limit = facts.get("limit") if isinstance(facts, dict) else None
    text = limit.get("text") if isinstance(limit, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{run / 'run.json'}: names no limit; expected a run that `headscope search` has finished.")
    match = re.fullmatch(r"([\d.]+)\s*%", text)
    if match is None:
        raise DataError(
            f"{run}: was searched with {text}, and policies are named by a share such as --keep 20%; give its policy by "
            f"--policy {run / 'policy.safetensors'}."
        )
    return f"{float(match[1]):g}"


@dataclass(frozen=True)
class Meaning:
    """Attributes: table: COLUMNS, budget and cache as a fraction and bytes, replay_kl on the run's unseen prompts.
    correlations: a row a budget: budget, policies, correlation (Spearman's of replay KL and overall score), low, high (95 %,
    by bootstrap over prompts); -1 where less KL always means more meaning. left_out: policies whose loss no run holds."""

    table: pd.DataFrame
    correlations: pd.DataFrame
    left_out: list[str]


def meaning(evaluation: str | Path, runs: Sequence[str | Path], seed: int = 0) -> Meaning:
    """Join the scores of an evaluation with the losses of the runs whose policies it drew.

    Raises:
        DataError: no graded evaluation, or no run for any of its policies.
    """
    evaluation = Path(evaluation)
    if not (evaluation / "scores.csv").is_file():
        raise DataError(f"{evaluation}: holds no finished evaluation; make one with `headscope evaluate`.")
    scores = read_table(evaluation / "scores.csv", _SCORES)
    if scores.empty:
        raise DataError(f"{evaluation}: was not graded; evaluate with StickerEval's prompts.")
    pictures = read_parquet(evaluation / "pictures.parquet", _PICTURES)
    methods = pd.concat([_losses(Path(run)) for run in runs]) if runs else pd.DataFrame(columns=["variant"])
    losses = methods.drop_duplicates("variant").set_index("variant")
    if absent := sorted(set(scores["variant"]) & set(losses.index) - set(pictures["variant"])):
        raise DataError(f"{evaluation}: scores.csv has {absent[0]}, pictures.parquet does not; evaluate into another folder.")
    if len(losses) and FULL not in losses.index:
        raise DataError(f"{runs[0]}: its methods.csv has no row of the full cache; expected one called {FULL}.")
    rows = []
    floors, left_out = {OTHER_SEED, f"{FULL}_bfloat16", f"{FULL}_float32"}, dict[str, None]()
    for row in scores.to_dict("records"):
        name = str(row["variant"])
        method, _, budget = name.rpartition("-")
        if name == FULL:
            method, share, kl = FULL, 1.0, 0.0
            nbytes = float(losses.loc[FULL, "cache_bytes"]) if len(losses) else np.nan
        elif name in losses.index:
            share, kl, nbytes = (
                float(budget) / 100,
                float(losses.loc[name, "replay_kl"]),
                float(losses.loc[name, "cache_bytes"]),
            )
        else:
            left_out |= {name: None} if name not in floors else {}
            continue
        rows.append((method, share, row["category"], row["score"], row["low"], row["high"], kl, nbytes))
    table = pd.DataFrame(rows, columns=COLUMNS)
    if set(table["method"]) <= {FULL}:
        raise DataError(f"{evaluation}: none of the runs given holds the loss of a policy that was drawn; add --run.")
    return Meaning(table, _correlations(table, pictures, seed), list(left_out))


def _losses(run: Path) -> pd.DataFrame:
    tables = []
    for budget, (policy, search) in _places(run).items():
        file = run / "methods.csv" if policy.parent == run else search / "methods.csv"
        table = read_table(file, _METHODS)
        if table[["replay_kl", "cache_bytes"]].isna().any(axis=None):
            raise DataError(f"{file}: has a row without replay_kl or cache_bytes; expected both in every row.")
        tables.append(table.assign(variant=[name if name == FULL else f"{name}-{budget}" for name in table["method"]]))
    return pd.concat(tables)


def _correlations(table: pd.DataFrame, pictures: pd.DataFrame, seed: int) -> pd.DataFrame:
    by_prompt = pictures.groupby(["variant", "tag", "prompt"])["correct"].mean()
    rng = np.random.default_rng(seed)
    rows = []
    for budget, part in table[table["category"] == "overall"].groupby("budget"):
        if len(part) < 3 or budget == 1.0:
            continue
        names = [f"{method}-{100 * float(str(budget)):g}" for method in part["method"]]
        loss = part["replay_kl"].to_numpy()
        wide = by_prompt.loc[names].unstack("variant")[names]
        tags = [block.to_numpy(dtype=float) for _, block in wide.groupby(level="tag")]
        draws = []
        for _ in range(_BOOTSTRAPS):
            overall = np.mean([block[rng.integers(len(block), size=len(block))].mean(0) for block in tags], 0)
            if np.ptp(overall) > 0:
                draws.append(float(spearmanr(loss, overall).statistic))
        exact = np.mean([block.mean(0) for block in tags], 0)
        middle = float(spearmanr(loss, exact).statistic) if np.ptp(exact) > 0 else float("nan")
        low, high = np.quantile(draws, [0.025, 0.975]) if draws else (np.nan, np.nan)
        rows.append((float(str(budget)), len(part), middle, float(low), float(high)))
    return pd.DataFrame(rows, columns=["budget", "policies", "correlation", "low", "high"])
