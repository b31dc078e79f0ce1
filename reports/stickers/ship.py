"""The shipped policies and their cards, from what `search.py` found and measured.

    python reports/stickers/ship.py RUN --table reports/stickers/search.csv --keep 50,30,20,15,10% -o policies

Of these limits, by default all in the table, the searched policy of seed 0 (bench/keep-20/searched-0.safetensors
in RUN) is written with its unseen results, as stickers-20.safetensors, with a card, stickers-20.md, and its picture;
shipped.csv beside the table lists them: policy, budget, heads by bits, replay_kl, its 95 % interval and top1. Where the run has
the sensitivity table of `--table-images`, they carry the rule by which they can be transferred. `headscope search
search/stickers-20.toml` finds the same again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from bench_setup import SEARCHED, Folder, Run, Setup, TableImages, shares, start, write_table

from headscope.policy import CONTROLS, PRESETS, Policy, Rule, load_policy, save_policy
from headscope.reporting import write_card
from headscope.run_folder import RunFolder
from headscope.tracing import TraceDataset
from headscope.tuning import Seen, load_table, rule_of

PROMPT = "red apple, noto style"


def main(
    run: Run,
    table: Annotated[Path, typer.Option(help="What search.py wrote.")] = Path("search.csv"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of policies and cards.")] = Path("policies"),
    keep: Annotated[str | None, typer.Option(help="Which limits, such as 50,20% (default: all of the table).")] = None,
    table_images: TableImages = 32,
    folder: Folder = None,
) -> None:
    """Write every policy and its card."""
    setup, rows, shipped = Setup.open(run, folder), pd.read_csv(table), []
    rule = carried_rule(setup, run, table_images)
    asked = rows.loc[rows["method"] == SEARCHED, "budget"] if keep is None else shares(keep)
    for share in sorted(set(asked), reverse=True):
        name, mine = f"{setup.model.shape.name}-{100 * share:g}", rows[rows["budget"] == share].set_index("method")
        policy = load_policy(setup.folder(share) / f"{SEARCHED}-0.safetensors", setup.model.shape)
        ours = mine[mine["seed"] == 0].loc[SEARCHED]
        unseen = {name: float(ours[name]) for name in ("replay_kl", "kl_low", "kl_high", "top1", "cache_bytes")}
        unseen |= {"images": len(setup.unseen), "kept_ratio": setup.limit(share).spec.share_of(policy)}
        policy = policy.replace(results={**policy.results, "unseen": unseen}, rule=rule)
        save_policy(policy, out / f"{name}.safetensors")
        write_card(policy, out / f"{name}.md", name, more=rows_of_a_card(name, policy, mine), prompt=PROMPT)
        bits = {f"heads_{bits}": int((policy.bits == bits).sum()) for bits in (16, 8, 4)}
        shipped.append({"policy": name, "budget": share, **bits, **ours[["replay_kl", "kl_low", "kl_high", "top1"]].to_dict()})
        print(out / f"{name}.safetensors")
    write_table(pd.DataFrame(shipped), table.with_name("shipped.csv"))


def carried_rule(setup: Setup, run: Path, images: int) -> Rule | None:
    """What the policies carry so that they can be transferred; None without a table of so many images."""
    path = setup.out / f"sensitivity-{images}-fisher.parquet"
    if not path.exists():
        return None
    trace, shape = TraceDataset(RunFolder(run).trace), setup.model.shape
    return rule_of(Seen.of(trace.heads(), trace.curves(), shape), load_table(path), shape)


def rows_of_a_card(name: str, policy: Policy, mine: pd.DataFrame) -> list[tuple[str, str]]:
    """What the table of methods adds to the card of a policy; `mine` is its limit's part of it, by method."""
    ours, origin = mine[mine["seed"] == 0].loc[SEARCHED], policy.provenance["origin"]
    known = [row for row in mine.index if row.removesuffix("+bits") in (set(PRESETS) | {"kvtuner"}) - {"full", *CONTROLS}]
    best, published = mine.loc[known, "replay_kl"], mine.loc[[row for row in known if "+" not in row], "replay_kl"]
    command = f"`headscope search search/{name}.toml`"
    return [
        ("found by", f"{command}: {origin}, seed 0, {int(ours['trials'])} policies measured"),
        (
            "best preset at the same bytes",
            f"{best.idxmin()}, {best.min():.4f}; in 16 bits {published.idxmin()}, {published.min():.4f}",
        ),
    ]


if __name__ == "__main__":
    start(main)
