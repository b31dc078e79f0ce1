"""What losses of single heads predict together: their sum, the joint loss, and what is measured.

    python reports/stickers/joint.py RUN -o reports/stickers/joint.csv

For policies drawn at random around the solver's answers (its table times 2^noise, noise normal, at several limits): share of
the plain cache (keep), noise, the sum of the table's losses (sum) and the joint loss (joint), both of the run's calibration
images, and what a replay measures on those images (calibration_kl) and on unseen ones (unseen_kl), nats a token. Then the same
for choices that the joint loss itself makes, exchanging one head's option at a time from the solver's answer on (noise
"joint"), beside the solver's ("sum"), both without a limit on the kinds of heads in a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from bench_setup import Folder, Keep, Out, Run, Setup, shares, show, shown, start, write_table

from headscope.policy import Limit, Policy
from headscope.tuning import (
    ANCHOR,
    Losses,
    Products,
    Replay,
    allocate,
    default_options,
    measure_products,
    option_bytes,
    table_stride,
)

BITS = (16, 8, 4)
ROUNDS = 8  # through all heads, for one price of a byte
PRICES = 22  # halvings towards the price at which the choice just fits


def main(
    run: Run,
    out: Out = Path("joint.csv"),
    keep: Keep = "50,30,20,10,7%",
    policies: Annotated[int, typer.Option(min=1, help="Drawn at random, over all limits.")] = 200,
    images: Annotated[int, typer.Option(min=1, help="Calibration images of the products.")] = 32,
    replayed: Annotated[int, typer.Option(min=1, help="Images of each kind that policies are measured on.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    folder: Folder = None,
) -> None:
    """Sum and joint loss against what is measured."""
    setup = Setup.open(run, folder)
    options, stride = default_options(setup.model.shape.geometry, BITS), table_stride(setup.model.shape.geometry)
    products = measure_products(setup.few(images), options, stride, anchor=ANCHOR, progress=shown("products"))
    trial = Trial(setup, products, stride, replayed)
    rows, rng, limits = [], np.random.default_rng(seed), [setup.limit(share) for share in shares(keep)]
    for number in range(policies):
        noise = float(rng.uniform(0, 2))
        weights = np.exp2(noise * rng.standard_normal(trial.losses.shape))
        limit = limits[number % len(limits)]
        rows.append(trial.row(limit, f"{noise:.2f}", trial.chosen(limit, trial.losses * weights, 3)))
        write_table(pd.DataFrame(rows), out)
    for limit in limits:
        by_sum = trial.chosen(limit, trial.losses, setup.model.shape.kv_heads)
        rows += [trial.row(limit, "sum", by_sum), trial.row(limit, "joint", by_joint(trial, limit, by_sum))]
        write_table(pd.DataFrame(rows), out)
    show(pd.DataFrame(rows).tail(2 * len(limits)))
    print(f"table: {out}")


class Trial:
    """Choices of options, what is predicted of them, and what is measured."""

    def __init__(self, setup: Setup, products: Products, stride: int, replayed: int) -> None:
        self.setup, self.products, self.stride = setup, products, stride
        self.losses = products.losses()
        self.calibration = setup.study(replayed)
        self.unseen = Replay(setup.model, setup.unseen.first(replayed), by_stream=False)

    def cost(self, limit: Limit) -> np.ndarray:
        """Bytes a row of one head with each option."""
        return option_bytes(Losses(self.products.options, self.losses, self.stride), limit, self.stride, ANCHOR)

    def chosen(self, limit: Limit, losses: np.ndarray, kinds: int) -> np.ndarray:
        """The options with the least sum, int [layers, kv_heads]."""
        found = allocate(losses, self.cost(limit), limit.per_row, kinds, nodes=0)
        assert found is not None
        return found.choice

    def row(self, limit: Limit, noise: str, choice: np.ndarray) -> dict[str, Any]:
        """What is known of a choice."""
        policy = self.policy(limit, choice)
        total = float(np.take_along_axis(self.losses, choice[..., None], -1).sum())
        row = {"keep": limit.share, "noise": noise, "sum": total, "joint": self.products.joint(choice)}
        measured = {"calibration_kl": self.calibration.measure(policy).kl, "unseen_kl": self.unseen.measure(policy).kl}
        return row | measured

    def policy(self, limit: Limit, choice: np.ndarray) -> Policy:
        """A choice as a policy."""
        kinds = [self.products.options[number] for number in choice.flatten()]

        def of(name: str, kind: torch.dtype) -> torch.Tensor:
            return torch.tensor([getattr(one, name) for one in kinds], dtype=kind).view(choice.shape)

        numbers = {"window": of("window", torch.int32), "heavy": of("heavy", torch.int32), "bits": of("bits", torch.uint8)}
        decay = of("decay", torch.float32)
        return Policy.uniform(
            limit.spec.shape, **numbers, decay=decay, anchor=ANCHOR, stride=self.stride, prefix=limit.spec.prefix
        )


def by_joint(trial: Trial, limit: Limit, begin: np.ndarray) -> np.ndarray:
    """The choice that descends the joint loss plus a price a byte, head by head, at the price that just fits."""
    cost, values = trial.cost(limit), trial.products.values
    heads = values.astype(np.float32).reshape(len(values), begin.size, -1)
    own, low, high = np.square(heads).sum(-1), 1e-6, 1e6
    best: tuple[float, np.ndarray] | None = None
    for _ in range(PRICES):
        price = float(np.sqrt(low * high))
        choice = begin.flatten().copy()
        total = heads[choice, np.arange(begin.size)].sum(0)
        for _ in range(ROUNDS):
            before = choice.copy()
            for head in range(begin.size):
                rest = total - heads[choice[head], head]
                choice[head] = int((2 * heads[:, head] @ rest + own[:, head] + price * cost).argmin())
                total = rest + heads[choice[head], head]
            if (before == choice).all():
                break
        fits = cost[choice].sum() <= limit.per_row
        low, high = (low, price) if fits else (price, high)
        if fits and (best is None or total @ total < best[0]):
            best = float(total @ total), choice
    return begin if best is None else best[1].reshape(begin.shape)


if __name__ == "__main__":
    start(main)
