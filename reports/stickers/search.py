"""Every preset, the solver and the search, with 16 bits and with fewer, over limits and seeds, on images that no search saw.

    python reports/stickers/search.py RUN --seeds 5 --many 20,10% -o reports/stickers/search.csv

writes search.csv and its figure search.png, and the policies beside the studies (bench/keep-20/searched-0.safetensors in RUN).

A row a limit, method and seed: budget (share of a plain cache of two bytes a number), method, bits (all that heads have), seed,
replay_kl (nats a token, unseen images), cache_bytes (of one image, two bytes a number), trials (policies measured, given up
ones too), seconds (of measuring them; for the solver and the search with the sensitivity table), calibration_kl, top1, the 95 %
interval of replay_kl over images (kl_low, kl_high), the paired difference to the searched policy of seed 0 (difference,
difference_low, difference_high; positive where this method loses more), and what the policy is (variant). Presets depend on no
seed and have one row; `h2o+bits` is `h2o` with its best 8 or 4 bits, `searched16` and `solver16` have 16 bits alone, `kivi`
stands at its own sizes, and `full_bfloat16` is the model in bfloat16 with everything kept. `searched` may choose bits, prompts
and kinds of scores by head, `searched_bits` bits alone. Goes on after a stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer
from bench_setup import (
    SEARCHED,
    SOLVER,
    Folder,
    Keep,
    Out,
    Run,
    Seeds,
    Setup,
    TableImages,
    Trials,
    Unseen,
    shares,
    show,
    start,
    write_table,
)

from headscope import load_model
from headscope.errors import BudgetError
from headscope.intervals import mean_interval
from headscope.policy import CONTROLS, PRESETS, Limit, Policy, make_preset, save_policy
from headscope.reporting import budgets_figure, save_figure
from headscope.storage import write_whole
from headscope.tuning import SearchResult, Sweep, Table, UsualAttention, kvtuner


class Kind(NamedTuple):
    """What a search may choose.

    Attributes:
        mark: behind the method's name.
        bits: of a kept number.
        prompts: 1 keeps the whole prompt, 0 its first and last token.
        compares: whether heads may choose by what tokens receive against what is usual.
    """

    mark: str
    bits: tuple[int, ...]
    prompts: tuple[int, ...]
    compares: bool

    @property
    def knobs(self) -> dict[str, str]:
        """As `SearchConfig` has them."""
        prompt, score = "by head" if 0 in self.prompts else "whole", "by head" if self.compares else "received"
        return {"bits": ",".join(map(str, self.bits)), "prompt": prompt, "score": score}


# All that a search may choose, the bits alone, and nothing but sizes.
KIND, BITS, PLAIN = Kind("", (16, 8, 4), (1, 0), True), Kind("_bits", (16, 8, 4), (1,), False), Kind("16", (16,), (1,), False)
SHOWN = ["budget", "method", "bits", "seed", "replay_kl", "cache_bytes", "trials", "seconds"]


class Entry(NamedTuple):
    """A policy that a method found, its loss on the calibration images, and what finding it cost."""

    method: str
    seed: int
    policy: Policy
    kl: float
    trials: int
    seconds: float


def main(
    run: Run,
    out: Out = Path("search.csv"),
    keep: Keep = "50,30,20,15,10,7%",
    seeds: Seeds = 5,
    many: Annotated[str, typer.Option(help="Shares with all seeds; elsewhere one.")] = "20,10%",
    trials: Trials = 40,
    images: Annotated[int, typer.Option(min=1, help="Calibration images that trials are measured on.")] = 16,
    table_images: TableImages = 32,
    folder: Folder = None,
) -> None:
    """Every preset, the solver and the search, on unseen images."""
    setup = Setup.open(run, folder)
    wanted = [(share, setup.limit(share)) for share in shares(keep)]  # each is checked before the first is searched
    unseen, tables = Unseen(setup), {kind: setup.gradients(table_images, *kind[1:]) for kind in (KIND, BITS, PLAIN)}
    search = Searching(setup, tables, trials, images)
    rows = at_their_own_size(setup, unseen)
    for share, _ in wanted:
        several = seeds if share in shares(many) else 1
        rows += compared(share, [*search.presets(share), *search.searched(share, several)], unseen, setup)
        write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows)[[*SHOWN, "difference", "difference_low", "difference_high"]])
    figure = save_figure(budgets_figure(lines(pd.DataFrame(rows))), out.with_suffix(".png"))
    print(f"table: {out}, figure: {figure}")


class Searching(NamedTuple):
    """What finds policies under a limit."""

    setup: Setup
    tables: dict[Kind, Table]
    trials: int
    images: int

    def sweep(self, share: float) -> Sweep:
        """Every preset, with kvtuner where every token fits in some bits."""
        found = self.setup.sweep(share, self.setup.study(self.images), KIND.bits)
        try:
            policy = kvtuner(self.setup.losses(self.tables[BITS].losses), self.setup.limit(share))
        except BudgetError:
            return found
        return Sweep({**found.best, "kvtuner": policy}, found.table)

    def presets(self, share: float) -> Iterator[Entry]:
        """The best variant of each; its trials are the variants tried."""
        sweep = self.sweep(share)
        for name, policy in sweep.best.items():
            mine = sweep.table[(sweep.table["method"] == name) & sweep.table["fits"]]
            yield Entry(name, 0, policy, float(mine["kl"].min()), len(mine), float(mine["seconds"].sum()))

    def searched(self, share: float, seeds: int) -> Iterator[Entry]:
        """The solver's answer and the search around it: with all it may choose for every seed, with less for the first."""
        place, sweep = self.setup.folder(share), self.sweep(share)
        for seed, kind in [*((seed, KIND) for seed in range(seeds)), (0, BITS), (0, PLAIN)]:
            table, mark, replay = self.tables[kind], kind.mark, self.setup.study(self.images, kind.compares)
            some = {name: policy for name, policy in sweep.best.items() if kind != PLAIN or not policy.quantized}
            name = f"{SEARCHED}{mark}-{seed}"
            knobs = {"trials": self.trials, "seed": seed, **kind.knobs}
            result = self.setup.search(share, replay, Sweep(some, sweep.table), table.losses, name, **knobs)
            if kind.compares:
                result = completed(result, self.setup.usual)
            save_policy(result.policy, place / f"{name}.safetensors")
            write_whole(place / f"{name}.parquet", partial(result.trials.to_parquet, index=False))
            yield Entry(f"{SEARCHED}{mark}", seed, result.policy, result.kl, *cost(result, table.seconds))
            if seed == 0 and result.solver is not None:
                solved = result.solver
                yield Entry(f"{SOLVER}{mark}", 0, solved.policy, solved.kl, *cost(result, table.seconds, SOLVER))


def completed(result: SearchResult, usual: UsualAttention) -> SearchResult:
    """With the tables that scores need."""
    solver = result.solver
    if solver is not None:
        solver = replace(solver, policy=usual.complete(solver.policy))
    return replace(result, policy=usual.complete(result.policy), solver=solver)


def cost(result: SearchResult, extra: float, label: str = "") -> tuple[int, float]:
    """Policies measured and seconds, of a whole search or of what its labels begin with."""
    rows = result.trials[result.trials["fingerprint"] != ""]
    rows = rows[rows["label"].str.startswith(label)].drop_duplicates("fingerprint")
    return len(rows), extra + float(rows["seconds"].sum())


def at_their_own_size(setup: Setup, unseen: Unseen) -> list[dict[str, Any]]:
    """Everything kept: as the run has it, rounded to bfloat16, and in 8 and 4 bits."""
    whole = setup.limit(1.0)
    found = [Entry("full", 0, make_preset("full", whole), 0.0, 1, 0.0)]
    found += [
        Entry("kivi", 0, variant.build(whole), float("nan"), 1, 0.0)
        for variant in PRESETS["kivi"].sweep(setup.model.shape.geometry)
    ]
    rows = [row(share_of(entry.policy, whole), entry, unseen.measure(entry.policy), whole) for entry in found]
    copy = load_model(setup.source, dtype="bfloat16")
    rounded = unseen.replay.measure_full(copy)
    facts = {"kl": rounded.kl, "top1": rounded.top1, "by_image": rounded.kl_by_image.tolist()}
    return [rows[0], row(1.0, found[0]._replace(method="full_bfloat16"), facts, whole), *rows[1:]]


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows: of presets the best at each budget, as published and with its best bits."""
    known = (
        table["method"].str.removesuffix("+bits").isin([name for name in PRESETS if name not in ("full", "kivi", *CONTROLS)])
    )
    packed = table["method"].str.endswith("+bits")
    own = (table["method"] == "kivi") & table["difference"].isna()  # at its own sizes
    parts = [table[own | table["method"].isin(["searched", "searched16"])]]
    for name, mine in (("best preset", known & ~packed), ("best preset with bits", known)):
        parts.append(table[mine].loc[lambda rows: rows.groupby("budget")["replay_kl"].idxmin()].assign(method=name))
    return pd.concat(parts, ignore_index=True)


def share_of(policy: Policy, limit: Limit) -> float:
    """Of the plain cache."""
    return limit.spec.share_of(policy)


def compared(share: float, found: list[Entry], unseen: Unseen, setup: Setup) -> list[dict[str, Any]]:
    """A row a policy, measured on the unseen images and paired with the first searched one."""
    first = np.array(unseen.measure(next(entry.policy for entry in found if entry.method == SEARCHED))["by_image"])
    rows = []
    for entry in found:
        facts = unseen.measure(entry.policy)
        apart = np.array(facts["by_image"]) - first
        least, most = mean_interval(apart)
        paired = {"difference": float(apart.mean()), "difference_low": least, "difference_high": most}
        rows.append(row(share, entry, facts, setup.limit(share)) | paired)
    return rows


def row(share: float, entry: Entry, facts: dict[str, Any], limit: Limit) -> dict[str, Any]:
    """What is known of a policy beside the others."""
    low, high = mean_interval(np.array(facts["by_image"]))
    bits = " ".join(str(each) for each in sorted(set(entry.policy.bits.flatten().tolist()), reverse=True))
    found = {"budget": share, "method": entry.method, "bits": bits, "seed": entry.seed, "replay_kl": facts["kl"]}
    found |= {"cache_bytes": limit.spec.bytes_of(entry.policy), "trials": entry.trials, "seconds": round(entry.seconds, 1)}
    found |= {"calibration_kl": entry.kl, "top1": facts["top1"], "kl_low": low, "kl_high": high}
    paired = dict.fromkeys(("difference", "difference_low", "difference_high"), float("nan"))
    origin = entry.policy.provenance
    return found | paired | {"variant": str(origin.get("variant", origin.get("origin", "")))}


if __name__ == "__main__":
    start(main)
