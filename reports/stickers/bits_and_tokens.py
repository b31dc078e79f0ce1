"""Bits beside tokens: the solver's answer with 16 bits only, and with 16, 8 and 4, at the same bytes.

    python reports/stickers/bits_and_tokens.py --folder runs/bits -o reports/stickers/bits_and_tokens.csv

Bytes are those of a bfloat16 cache, prompt included. The table is by gradients, of 8 and of 24 calibration images; no trial is
made: what is measured is the solver's first answer, at a stride of a quarter row, on images of prompts that it did not see.

Writes a row a table, share and choice of bits: table_images, keep, bits, kept_ratio, predicted (the sum of the table's losses,
nats a token), replay_kl (nats a token), its 95 % interval over images (kl_low, kl_high), top1, and the number of heads by bits
(heads_16, heads_8, heads_4). Goes on after a stop: images and table are kept in the folder.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from bench_setup import one_thread, shown

import headscope
from headscope.intervals import mean_interval
from headscope.models import ImageModel, Samples
from headscope.pipeline import default_prompts
from headscope.policy import parse_share
from headscope.storage import write_csv
from headscope.tuning import losses_from, sensitivity_table, solve

BITS = (16, 8, 4)
TABLES = (8, 24)  # calibration images


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("bits_and_tokens.csv"),
    folder: Annotated[Path, typer.Option(help="Where images and table are kept.")] = Path("runs/bits"),
    keep: Annotated[str, typer.Option(help="Shares of a bfloat16 cache.")] = "50,30,20,15,10,7%",
    images: Annotated[int, typer.Option(min=1, help="Of unseen prompts.")] = 32,
) -> None:
    """The bundled model `stickers`."""
    one_thread()
    model = headscope.load_model("stickers")
    shape, prompts = model.shape, default_prompts("stickers")
    calibration = kept_images(model, folder / "calibration.parquet", prompts[0::2][: max(TABLES)], 0)
    unseen = kept_images(model, folder / "unseen.parquet", prompts[1::2][:images], 10_000)
    judge = headscope.Replay(model, unseen, by_stream=False)
    spec = headscope.CacheSpec(shape, model.tokenize(prompts).ids.shape[1], dtype="bfloat16")
    rows = []
    for count in TABLES:
        replay = headscope.Replay(model, calibration.first(count), by_stream=False)
        table = sensitivity_table(replay, "fisher", None, folder / f"sensitivity-{count}.parquet", shown("the table"), BITS)
        for share, bits in product(keep.rstrip("%").split(","), ((16,), BITS)):
            losses = losses_from(table.losses[table.losses["bits"].isin(bits)], shape.layers, shape.kv_heads, shape.geometry)
            limit = headscope.Limit.of_share(parse_share(f"{share}%"), spec)
            policy = solve(losses, limit, shape.geometry.stride_row // 4)
            found = judge.measure(policy)
            low, high = mean_interval(found.kl_by_image.numpy())
            row = {"table_images": count, "keep": f"{share}%", "bits": " ".join(map(str, bits))}
            row |= {"kept_ratio": spec.share_of(policy), "predicted": policy.provenance["predicted_loss"]}
            row |= {"replay_kl": found.kl, "kl_low": low, "kl_high": high, "top1": found.top1}
            rows.append(row | {f"heads_{each}": int((policy.bits == each).sum()) for each in BITS})
            print(rows[-1])
    write_csv(pd.DataFrame(rows), out, float_format="%.4g")


def kept_images(model: ImageModel, path: Path, prompts: list[str], seed: int) -> Samples:
    """Of the full cache, generated once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        headscope.generate(model, prompts, seed).save(path)
    return Samples.load(path)


if __name__ == "__main__":
    typer.run(main)
