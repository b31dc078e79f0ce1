"""Policies for Janus-Pro, which nobody has measured yet: by map, from the published figure of its heads, and SSD as printed.

    python reports/transfer/janus.py RUN RUN ... -o policies --table reports/transfer/janus.csv

writes janus-pro-1b-{50,30,20}.safetensors and janus-pro-7b-{50,30,20}.safetensors with their cards: transferred by map, with
the rule learnt on the RUNs (folders with trace, heads and a sensitivity table) and the head maps of 2510.18716, digitised from
its figure; and janus-pro-1b-ssd-printed-20.safetensors and so on: the SSD preset with the printed scores, at the same bytes.
None was run on the real weights. janus.csv lists them: policy, keep, bytes, prefix, stride, heads by bits, heads with heavy
tokens, mean window and mean heavy tokens. `headscope policy transfer` makes the first kind again, from policies with a rule.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stickers"))
from bench_setup import TableImages, one_thread, start, write_table
from transfer import Model, Runs

from headscope.heads import read_scores
from headscope.models import published_shape
from headscope.policy import CacheSpec, Limit, ModelShape, Policy, make_preset, save_policy
from headscope.storage import write_text
from headscope.tuning import Source, Target, carry_over

SHARES = (0.5, 0.3, 0.2)
# Tokens of the longest prompt that the policies are counted for: chat template and a caption of some forty words.
PREFIX = 64
CARD = """# {name}

| | |
|---|---|
| model | {model}, any weights of its shape, in transformers' format or DeepSeek's: {layers} layers, {kv_heads} KV heads of \
{head_dim}, {grid} tokens |
| limit | {percent:g} % of a plain cache of one guided image, two bytes a number, prompt of {prefix} tokens included: \
{bytes:,} bytes, of which it allocates {needed:,} |
| keeps | strides of {stride} tokens; {buckets} buckets in {layers} layers; {heads}; \
`headscope policy show {name}` prints them |
| made by | {made} |
| measured | **never run on the real weights here**: what it loses there is not known |

With the weights at hand, measure it, make a better one by what the heads of this model look at, or search:

    headscope trace deepseek-community/{model} --out runs/{lower}
    headscope policy measure {name} --on runs/{lower} -o {name}.safetensors
    headscope policy transfer stickers-20 --to deepseek-community/{model} --trace runs/{lower} --keep {percent:g}%
    headscope heads runs/{lower} && headscope search runs/{lower} --keep {percent:g}%
"""
BY_MAP = (
    "transfer by map: what the heads of {sources} lose, by the rank of their attention outside the neighbourhood and by their "
    "depth, applied to the published map of this model's heads (figure of 2510.18716, values digitised)"
)
PRINTED = (
    "the SSD preset (2510.18716) with the printed scores of this model's heads (values digitised from the figure): those above "
    "{threshold:g} keep what is most attended, the others what is recent; the paper does not print its threshold and sizes"
)


def main(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of policies and cards.")] = Path("policies"),
    table: Annotated[Path, typer.Option(help="CSV file that lists them.")] = Path("janus.csv"),
    table_images: TableImages = 8,
    folder: Annotated[Path | None, typer.Option(help="Where tables are kept (default: bench/ in RUN).")] = None,
) -> None:
    """Write every policy and its card."""
    one_thread()
    sources = [Model(run, folder, table_images, 1).as_source() for run in runs]
    rows = []
    for size in ("1B", "7B"):
        shape = published_shape(f"deepseek-community/Janus-Pro-{size}")
        assert shape is not None
        for share in SHARES:
            for name, policy, made in policies(shape, share, sources):
                print(save_policy(policy, out / f"{name}.safetensors"))
                write_text(out / f"{name}.md", card(name, policy, made))
                rows.append(listed(name, share, policy))
    write_table(pd.DataFrame(rows), table)


def listed(name: str, share: float, policy: Policy) -> dict[str, Any]:
    """A row of janus.csv."""
    bits = {f"heads_{bits}": int((policy.bits == bits).sum()) for bits in (16, 8, 4)}
    facts = {"policy": name, "keep": share, "bytes": policy.spec().bytes_of(policy), "prefix": policy.prefix}
    heavy = policy.heavy.float()
    sizes = {"heads_heavy": int((heavy > 0).sum()), "window": float(policy.window.float().mean()), "heavy": float(heavy.mean())}
    return {**facts, "stride": policy.stride, **bits, **sizes}


def policies(shape: ModelShape, share: float, sources: list[Source]) -> list[tuple[str, Policy, str]]:
    """Name, policy and what its card says of how it was made."""
    lower, percent = shape.name.lower(), f"{100 * share:g}"
    limit = Limit.of_share(share, CacheSpec(shape, PREFIX))
    figure = Path(str(files("headscope") / "bundled" / "head-maps" / f"{lower}.csv"))
    scores = read_scores(figure, f"{shape.layers}x{shape.kv_heads}").scores()
    carried = carry_over(sources, Target(shape, None, scores), limit)
    printed = make_preset("ssd", limit, scores)
    facts = {"from": "the printed scores", "weights": [], "kind": "by map", "measured": False}
    printed = printed.replace(limit=limit, provenance={**printed.provenance, "transferred": facts})
    known = " and ".join(f"`{source.told()}`" for source in sources)
    return [
        (f"{lower}-{percent}", carried, BY_MAP.format(sources=known)),
        (f"{lower}-ssd-printed-{percent}", printed, PRINTED.format(threshold=0.5)),
    ]


def card(name: str, policy: Policy, made: str) -> str:
    """The card of a policy."""
    shape, limit = policy.shape, policy.limit
    assert limit is not None
    counts = [f"{int((policy.bits == bits).sum())} in {bits}" for bits in (16, 8, 4)]
    return CARD.format(
        name=name,
        model=shape.name,
        lower=shape.name.lower(),
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        grid=shape.geometry,
        percent=100 * (limit.share or 0),
        prefix=policy.prefix,
        bytes=limit.bytes,
        needed=limit.spec.bytes_of(policy),
        stride=policy.stride,
        buckets=sum(len(policy.buckets(layer)) for layer in range(shape.layers)),
        heads=f"of heads {', '.join(counts)} bits",
        made=made,
    )


if __name__ == "__main__":
    start(main)
