"""Choosing again around an answer: a table whose gradients and changes are taken under the searched policy itself.

    python reports/stickers/again.py RUN --keep 20,10% --images 16 -o reports/stickers/again.csv

A row a limit and weight: keep, images (of both tables), weight (of the table around the policy; the rest is that of the full
cache; "policy": the searched policy itself, from bench/keep-20/searched-0.safetensors in RUN), calibration_kl (on these
images), unseen_kl with its 95 % interval, and the paired difference to the policy on unseen images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from bench_setup import SEARCHED, Folder, Keep, Out, Run, Setup, Unseen, shares, show, shown, start, write_table

from headscope import load_policy
from headscope.intervals import mean_interval
from headscope.policy import Limit, Policy
from headscope.tuning import Losses, allocate, option_bytes, table_around

BITS = (16, 8, 4)
KINDS = 3  # of heads in a layer
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main(
    run: Run,
    out: Out = Path("again.csv"),
    keep: Keep = "20,10%",
    images: Annotated[int, typer.Option(min=1, help="Calibration images of both tables.")] = 16,
    folder: Folder = None,
) -> None:
    """The answer chosen again, by tables around it."""
    setup = Setup.open(run, folder)
    unseen, replay = Unseen(setup), setup.few(images)
    full = setup.losses(setup.gradients(images, BITS).losses)
    rows = []
    for share in shares(keep):
        limit, policy = setup.limit(share), load_policy(setup.folder(share) / f"{SEARCHED}-0.safetensors")
        losses, anchor = full.at_stride(policy.stride), int(policy.anchor.max())
        around = table_around(replay, policy, losses.options, anchor=anchor, progress=shown(f"around {share:.0%}"))
        found = {"policy": policy}
        for weight in WEIGHTS:
            mixed = weight * around + (1 - weight) * losses.loss
            found[f"{weight:g}"] = chosen(limit, losses, mixed - mixed.min(-1, keepdims=True), policy, anchor)
        first = np.array(unseen.measure(policy)["by_image"])
        for weight, one in found.items():
            apart = mean_interval(np.array(unseen.measure(one)["by_image"]) - first)
            row: dict[str, Any] = {"keep": share, "images": images, "weight": weight, "calibration_kl": replay.measure(one).kl}
            low, high = mean_interval(np.array(unseen.measure(one)["by_image"]))
            row |= {"unseen_kl": unseen.measure(one)["kl"], "kl_low": low, "kl_high": high}
            rows.append(row | {"difference_low": apart[0], "difference_high": apart[1]})
            write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows))
    print(f"table: {out}")


def chosen(limit: Limit, losses: Losses, table: np.ndarray, policy: Policy, anchor: int) -> Policy:
    """The options with the least sum, with the stride and the anchors of a policy."""
    found = allocate(table, option_bytes(losses, limit, policy.stride, anchor), limit.per_row, KINDS, nodes=0)
    assert found is not None
    every = np.array([(one.window, one.heavy, one.decay, one.bits) for one in losses.options])[found.choice]
    heavy = torch.from_numpy(every[..., 1]).to(torch.int32)
    return Policy.uniform(
        limit.spec.shape,
        window=torch.from_numpy(every[..., 0]).to(torch.int32),
        heavy=heavy,
        decay=torch.where(heavy > 0, torch.from_numpy(every[..., 2]).float(), 1.0),
        bits=torch.from_numpy(every[..., 3]).to(torch.uint8),
        anchor=anchor,
        stride=policy.stride,
        prefix=limit.spec.prefix,
    )


if __name__ == "__main__":
    start(main)
