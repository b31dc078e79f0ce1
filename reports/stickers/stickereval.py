"""StickerEval by method and budget, and whether replay KL predicts it: an evaluation joined with the runs of its policies.

    python reports/stickers/stickereval.py EVALUATION --run RUN -o reports/stickers/stickereval.csv

writes stickereval.csv and its figure stickereval.png. EVALUATION is a folder of `headscope evaluate --run RUN`.

A row a method, budget and category: method, budget (share of the plain cache), category, score (share of images that show their
prompt) and its 95 % interval (low, high), replay_kl (nats a token, on the run's unseen images), cache_bytes. Printed beside it:
Spearman's correlation of replay KL and overall score within a budget, with its 95 % interval by bootstrap over prompts; -1
where less KL always means more meaning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from bench_setup import Out, show, start, write_table
from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

from headscope.errors import DataError
from headscope.evaluation import losses_of
from headscope.reporting import meaning_figure, save_figure
from headscope.storage import read_parquet, read_table

COLUMNS = ["method", "budget", "category", "score", "low", "high", "replay_kl", "cache_bytes"]
FULL = "full"
FLOORS = ("other_seed", "full_bfloat16", "full_float32")  # rows of every evaluation that are no policy
_SCORES = {**dict.fromkeys(("variant", "category"), str), **dict.fromkeys(("score", "low", "high"), float)}
_IMAGES = {**dict.fromkeys(("variant", "tag"), str), **dict.fromkeys(("prompt", "correct"), object)}


def main(
    evaluation: Annotated[Path, typer.Argument(help="A folder of `headscope evaluate --run ...`.")],
    run: Annotated[list[Path], typer.Option(help="The runs whose policies it generated with; give it again for more.")],
    out: Out = Path("stickereval.csv"),
) -> None:
    """Meaning by method and budget, and whether replay KL predicts it."""
    found = meaning(evaluation, run)
    write_table(found.table.assign(cache_bytes=found.table["cache_bytes"].round().astype("Int64")), out, "%.5g")
    show(found.table[found.table["category"] == "overall"].drop(columns="category"))
    show(found.correlations)
    print("correlation: Spearman's of replay KL and overall score within a budget, 95 % by bootstrap over prompts.")
    if found.left_out:
        print(f"left out, for no run given holds their loss: {', '.join(found.left_out)}.")
    print(f"table: {out}, figure: {save_figure(meaning_figure(found.table), out.with_suffix('.png'))}")


@dataclass(frozen=True)
class Meaning:
    """Scores with losses.

    Attributes:
        table: COLUMNS.
        correlations: a row a budget of three policies or more: budget, policies, correlation, low, high.
        left_out: policies whose loss no run holds.
    """

    table: pd.DataFrame
    correlations: pd.DataFrame
    left_out: list[str]


def meaning(evaluation: Path, runs: Sequence[Path]) -> Meaning:
    """Join the scores of an evaluation with the losses of the runs whose policies it generated with.

    Raises:
        DataError: no graded evaluation, or no run for any of its policies.
    """
    scores, images = graded(evaluation)
    methods = pd.concat([losses_of(run) for run in runs]) if runs else pd.DataFrame(columns=["variant"])
    losses = methods.drop_duplicates("variant").set_index("variant")
    if absent := sorted(set(scores["variant"]) & set(losses.index) - set(images["variant"])):
        raise DataError(f"{evaluation}: scores.csv has {absent[0]}, images.parquet does not; evaluate into another folder.")
    if len(losses) and FULL not in losses.index:
        raise DataError(f"{runs[0]}: its methods.csv has no row of the full cache; expected one called {FULL}.")
    known = scores[scores["variant"].isin(losses.index)]
    if set(known["variant"]) <= {FULL}:
        raise DataError(f"{evaluation}: none of the runs given holds the loss of a policy it generated with; add --run.")
    left_out = [name for name in dict.fromkeys(scores["variant"]) if name not in losses.index and name not in FLOORS]
    table = known.join(losses[["replay_kl", "cache_bytes"]], on="variant")
    parts = table["variant"].str.rpartition("-")
    full = table["variant"] == FULL
    table = table.assign(
        method=parts[0].where(~full, FULL),
        budget=parts[2].where(~full, "100").astype(float) / 100,
        replay_kl=table["replay_kl"].where(~full, 0.0),
    )
    table = table[COLUMNS].reset_index(drop=True)
    return Meaning(table, correlations(table, images), left_out)


def graded(evaluation: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of an evaluation, and what was said of its images."""
    if not (evaluation / "scores.csv").is_file():
        raise DataError(f"{evaluation}: holds no finished evaluation; make one with `headscope evaluate`.")
    scores = read_table(evaluation / "scores.csv", _SCORES)
    if scores.empty:
        raise DataError(f"{evaluation}: was not graded; evaluate with StickerEval's prompts.")
    return scores, read_parquet(evaluation / "images.parquet", _IMAGES)


def correlations(table: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """A row a budget; prompts are resampled within their category, as the overall score is the mean of the categories."""
    by_prompt = images.groupby(["variant", "tag", "prompt"])["correct"].mean()
    rows = []
    for budget, part in table[table["category"] == "overall"].groupby("budget"):
        if len(part) < 3 or budget == 1.0:
            continue
        names = [f"{method}-{100 * float(str(budget)):g}" for method in part["method"]]
        wide = by_prompt.loc[names].unstack("variant")[names]
        tags = [block.to_numpy(dtype=float) for _, block in wide.groupby(level="tag")]
        rows.append((float(str(budget)), len(part), *rank_correlation(part["replay_kl"].to_numpy(), tags)))
    return pd.DataFrame(rows, columns=["budget", "policies", "correlation", "low", "high"])


def rank_correlation(loss: np.ndarray, tags: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Spearman's correlation of losses [policies] and overall scores, and its 95 % interval.

    Args:
        loss: nats a token, one a policy.
        tags: for each category, shares of right images [prompts, policies].
    """

    def overall(*chosen: np.ndarray) -> np.ndarray:  # numbers of prompts [..., prompts] a category -> [..., policies]
        return np.mean([block[numbers].mean(-2) for block, numbers in zip(tags, chosen, strict=True)], 0)

    def spearman(*chosen: np.ndarray, axis: int = -1) -> np.ndarray:  # numbers come as floats, resamples in the first axis
        ranks = rankdata(overall(*(numbers.astype(int) for numbers in chosen)), axis=-1)
        ranks, losses = ranks - ranks.mean(-1, keepdims=True), rankdata(loss) - rankdata(loss).mean()
        spread = np.linalg.norm(ranks, axis=-1) * np.linalg.norm(losses)
        return (ranks @ losses) / np.where(spread > 0, spread, np.nan)  # where all score alike there is none

    tags = [np.repeat(block, 2, 0) if len(block) == 1 else block for block in tags]  # scipy takes two prompts or more
    numbers = tuple(np.arange(len(block)) for block in tags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # said of draws that have no correlation; they are left out
        found = bootstrap(numbers, spearman, n_resamples=2000, vectorized=True, method="percentile", rng=0)
    draws = found.bootstrap_distribution[np.isfinite(found.bootstrap_distribution)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return float(spearman(*numbers)), float(low), float(high)


if __name__ == "__main__":
    start(main)
