"""The shipped policies and their cards, from what `search.py` found and measured.

    python reports/stickers/ship.py RUN --table reports/stickers/search.csv -o policies

Of every limit in the table the searched policy of seed 0 (bench/keep-20/searched-0.safetensors in RUN) is written with its
unseen results, as stickers-20.safetensors, with a card, stickers-20.md; shipped.csv beside the table lists them: policy,
budget, heads by bits, replay_kl, its 95 % interval and top1. `headscope search search/stickers-20.toml` finds the same again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from bench_setup import SEARCHED, Run, Setup, start, write_table

from headscope.policy import CONTROLS, PRESETS, Limit, Policy, load_policy, save_policy
from headscope.storage import write_text

CARD = """# {name}

| | |
|---|---|
| model | `{model}` (bundled), weights {weights} |
| limit | {percent:g} % of a plain cache of one guided image, two bytes a number, prompt of {prefix} tokens included: \
{bytes:,} bytes, of which it allocates {needed:,} |
| keeps | strides of {stride} tokens; {buckets} buckets in {layers} layers; {heads}; \
`headscope policy show {name}` prints them |
| found by | `headscope search search/{name}.toml`: {origin}, seed 0, {trials} policies measured |
| loses | {kl:.4f} nats a token [{low:.4f}, {high:.4f}] on {images} prompts that the search never \
saw; top code the same at {top1:.1%} |
| best preset at the same bytes | {preset}, {theirs:.4f}; in 16 bits {plain}, {published:.4f} |

For use: `headscope generate {model} "red apple, noto style" --policy {name} --out images`. It is refused on other weights.
"""


def main(
    run: Run,
    table: Annotated[Path, typer.Option(help="What search.py wrote.")] = Path("search.csv"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of policies and cards.")] = Path("policies"),
) -> None:
    """Write every policy and its card."""
    setup, rows, shipped = Setup.open(run, None), pd.read_csv(table), []
    for share in sorted(set(rows.loc[rows["method"] == SEARCHED, "budget"]), reverse=True):
        name, mine = f"{setup.model.shape.name}-{100 * share:g}", rows[rows["budget"] == share].set_index("method")
        policy = load_policy(setup.folder(share) / f"{SEARCHED}-0.safetensors", setup.model.shape)
        ours = mine[mine["seed"] == 0].loc[SEARCHED]
        unseen = {"replay_kl": float(ours["replay_kl"]), "top1": float(ours["top1"]), "cache_bytes": float(ours["cache_bytes"])}
        unseen["kept_ratio"] = setup.limit(share).spec.share_of(policy)
        save_policy(policy.replace(results={**policy.results, "unseen": unseen}), out / f"{name}.safetensors")
        write_text(out / f"{name}.md", card(name, policy, setup.limit(share), mine, len(setup.unseen)))
        bits = {f"heads_{bits}": int((policy.bits == bits).sum()) for bits in (16, 8, 4)}
        shipped.append({"policy": name, "budget": share, **bits, **ours[["replay_kl", "kl_low", "kl_high", "top1"]].to_dict()})
        print(out / f"{name}.safetensors")
    write_table(pd.DataFrame(shipped), table.with_name("shipped.csv"))


def card(name: str, policy: Policy, limit: Limit, mine: pd.DataFrame, images: int) -> str:
    """The card of a policy; `mine` is its limit's part of the table, by method."""
    ours, kinds = mine[mine["seed"] == 0].loc[SEARCHED], policy.shape.layers
    known = [row for row in mine.index if row.removesuffix("+bits") in (set(PRESETS) | {"kvtuner"}) - {"full", *CONTROLS}]
    best, published = mine.loc[known, "replay_kl"], mine.loc[[row for row in known if "+" not in row], "replay_kl"]
    counts = [f"{int((policy.bits == bits).sum())} in {bits}" for bits in (16, 8, 4)]
    return CARD.format(
        name=name,
        model=policy.shape.name,
        weights=str(policy.shape.weights)[:16],
        percent=100 * (limit.share or 0),
        prefix=policy.prefix,
        bytes=limit.bytes,
        needed=limit.spec.bytes_of(policy),
        stride=policy.stride,
        buckets=sum(len(policy.buckets(layer)) for layer in range(kinds)),
        layers=kinds,
        heads=f"of heads {', '.join(counts)} bits",
        origin=policy.provenance["origin"],
        trials=int(ours["trials"]),
        kl=ours["replay_kl"],
        low=ours["kl_low"],
        high=ours["kl_high"],
        images=images,
        top1=ours["top1"],
        preset=best.idxmin(),
        theirs=best.min(),
        plain=published.idxmin(),
        published=published.min(),
    )


if __name__ == "__main__":
    start(main)
