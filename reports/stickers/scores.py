"""Kinds of scores, and forms of the tables that `expected` compares with: bytes, and losses on unseen images.

    python reports/stickers/scores.py RUN --policies stickers-30,stickers-20,stickers-10 -o reports/stickers/scores.csv

A row a policy and form: policy, form, bytes (of the tables), share (of the policy's cache of 16 images), unseen_kl (nats a
token), and the 95 % interval of the paired difference to `received`, over images. All other numbers are the policy's. What is
usual comes from the calibration images. The forms: every stride end and place in 32 bits; every row and place; every other row;
a place alone; shared by classes of heads (8, by k-means); and products of low rank, a row at a time, of 8 bits, which policies
have, at rank 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from bench_setup import Out, Run, Setup, show, shown, start, write_table
from sklearn.cluster import KMeans

from headscope.intervals import mean_interval
from headscope.policy import BUILT_IN, FLOOR, Policy, ScoreTable, load_policy
from headscope.tuning import Replay, UsualAttention, approximated, usual_attention

RANKS, BATCH = (1, 2, 3, 4, 6, 8), 16
CLASSES = 8


@dataclass(frozen=True, eq=False)
class Whole(ScoreTable):
    """Weights as they are, float32 [n, times, tokens]."""

    log: torch.Tensor

    @classmethod
    def of_all(cls, policy: Policy, log: torch.Tensor) -> Whole:
        """For every head of a policy that needs a table, [n, times, tokens] in powers of two."""
        heads, grid = policy.needs_table.flatten().nonzero().flatten().to(torch.int32), policy.shape.geometry
        empty = ScoreTable.written(heads, torch.zeros(len(heads), 1, grid.rows), torch.zeros(len(heads), 1, grid.tokens))
        return cls(*empty.tensors().values(), log)

    def of(self, heads: Any) -> Whole:
        """Of some heads."""
        places = torch.searchsorted(self.heads, torch.as_tensor(heads, dtype=torch.int32))
        return Whole(*super().of(heads).tensors().values(), self.log[places])

    def to(self, device: torch.device) -> Whole:
        """The same on a device."""
        return Whole(*super().to(device).tensors().values(), self.log.to(device))

    def row_of(self, t: int) -> int:
        """The time of an image token."""
        return t * self.log.shape[1] // self.log.shape[2]

    def weights(self, row: int) -> torch.Tensor:
        """float32 [n, tokens]."""
        return self.log[:, row].float().exp2()


def main(
    run: Run,
    out: Out = Path("scores.csv"),
    policies: Annotated[str, typer.Option(help="Policies, by name or file.")] = "stickers-30,stickers-20,stickers-10",
    images: Annotated[int, typer.Option(min=1, help="Unseen images.")] = 16,
) -> None:
    """Kinds of scores and forms of tables."""
    setup = Setup.open(run, None)
    usual = usual_attention(setup.model, setup.calibration, setup.out / "usual.safetensors", shown("what is usual"))
    replay, rows = Replay(setup.model, setup.unseen.first(images), by_stream=False), list[dict[str, Any]]()
    for name in policies.split(","):
        policy, first = load_policy(name, setup.model.shape), np.zeros(0)
        cache = policy.spec().replace(batch=BATCH).bytes_of(policy)
        for form, made, nbytes in forms(policy, usual):
            found = replay.measure(made)
            by_image = found.kl_by_image.numpy()
            first = first if len(first) else by_image
            low, high = mean_interval(by_image - first)
            row = {"policy": name, "form": form, "bytes": nbytes, "share": nbytes / cache, "unseen_kl": found.kl}
            rows.append(row | {"difference_low": low, "difference_high": high})
            write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows))
    print(f"table: {out}")


def forms(policy: Policy, usual: UsualAttention) -> Iterator[tuple[str, Policy, int]]:
    """Name, policy, and bytes of its tables."""
    for kind in ("received", "value"):
        yield kind, policy.replace(score=torch.full_like(policy.score, BUILT_IN.index(kind))), 0
    policy = policy.replace(score=torch.full_like(policy.score, BUILT_IN.index("expected")))
    rows, known = usual.log_weights(policy)
    mean = (rows * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    ends = by_end(policy, usual)
    shared, kinds = by_class(rows)
    every = {
        "every stride end, 32 bits": (ends, 4 * ends.numel()),
        "every row, 32 bits": (rows, 4 * rows.numel()),
        "every other row, 8 bits": (rows[:, ::2], rows[:, ::2].numel()),
        "place alone, 16 bits": (mean, 2 * mean.numel()),
        f"{CLASSES} classes of heads, every row, 8 bits": (shared, kinds * rows[0].numel()),
    }
    for name, (log, nbytes) in every.items():
        yield name, policy.replace(tables=Whole.of_all(policy, log.float())), nbytes
    heads = policy.needs_table.flatten().nonzero().flatten().to(torch.int32)
    for rank in RANKS:
        table = ScoreTable.written(heads, *approximated(rows, known, rank))
        yield f"rank {rank}, every row, 8 bits", policy.replace(tables=table), table.nbytes


def by_end(policy: Policy, usual: UsualAttention) -> torch.Tensor:
    """log2 of weights [n, ends, tokens], nothing left out."""
    received = usual.received[policy.needs_table].double()
    decay = policy.decay[policy.needs_table].double() ** (usual.stride / policy.stride)
    by_now, coming, found = torch.zeros_like(received[:, 0]), received.sum(1), []
    for end in range(received.shape[1]):
        by_now = by_now * decay[:, None] + received[:, end]
        coming = coming - received[:, end]
        found.append(coming.clamp(min=1e-3).log2() - (by_now + FLOOR).log2())
    return torch.stack(found, 1)


def by_class(log: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The mean of like heads in place of each, [n, rows, tokens], and how many classes there are."""
    flat = (log - log.mean(-1, keepdim=True)).flatten(1).numpy()
    found = KMeans(min(CLASSES, len(flat)), n_init=4, random_state=0).fit(flat)
    return torch.from_numpy(found.cluster_centers_[found.labels_]).view_as(log), len(found.cluster_centers_)


if __name__ == "__main__":
    start(main)
