"""What bits cost in quality: every token kept, and the tokens that H2O keeps at a fifth, in 16, 8 and 4 bits.

    python reports/runtime/bits.py -o reports/runtime/bits.csv

writes a row a policy and number of bits: policy (kivi: everything, h2o: a fifth), bits, kept_ratio (of a bfloat16 cache, prompt
included), replay_kl (nats a token, on images of prompts that no search saw), its 95 % interval over images (kl_low, kl_high),
top1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

import headscope
from headscope.intervals import mean_interval
from headscope.pipeline import default_prompts
from headscope.storage import write_csv


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("bits.csv"),
    images: Annotated[int, typer.Option(min=1, help="Of unseen prompts.")] = 32,
) -> None:
    """Everything, and a fifth by H2O (half of it recent, chosen at row ends), in 16, 8 and 4 bits."""
    torch.set_num_threads(1)
    model = headscope.load_model("stickers")
    samples = headscope.generate(model, default_prompts("stickers")[1::2][:images], 10_000)
    replay = headscope.Replay(model, samples, by_stream=False)
    spec = headscope.CacheSpec(model.shape, replay.prefix)
    every = headscope.make_preset("full", headscope.Limit.parse("100%", spec))
    fifth = headscope.PRESETS["h2o"](0.5, by_row=True).build(headscope.Limit.parse("20%", spec))
    rows = []
    for name, policy in (("kivi", every), ("h2o", fifth)):
        for bits in (16, 8, 4):
            fewer = policy.replace(bits=torch.full_like(policy.bits, bits))
            found = replay.measure(fewer)
            low, high = mean_interval(found.kl_by_image.numpy())
            row = {"policy": name, "bits": bits, "kept_ratio": spec.share_of(fewer), "replay_kl": found.kl}
            rows.append({**row, "kl_low": low, "kl_high": high, "top1": found.top1})
            print(rows[-1])
    write_csv(pd.DataFrame(rows), out, float_format="%.4g")


if __name__ == "__main__":
    typer.run(main)
