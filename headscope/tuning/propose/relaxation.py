"""Allocation by prices: a price a byte, under which every layer picks its kinds of heads on its own.

With few options every set of kinds is tried. With many, as sizes times bits make them, a layer's kinds are found by swaps, as
the medians of a small k-median problem (Teitz and Bart, Heuristic methods for estimating the generalized vertex median of a
weighted graph, 1968): begin with the best option alone, add the one that helps most, exchange one while that helps. What the
layers picked at all prices is then combined anew, one of its picks a layer, by an exact program that is small by then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

# Sets of options tried a layer and price; with more sets than that, kinds are found by swaps.
SETS = 4000
# Prices beside the one that just fits, as its multiples, at which the layers pick again for the last choice.
BESIDE = np.geomspace(0.5, 2.0, 41)
# Branches of that choice.
NODES = 200


@dataclass(frozen=True)
class Allocation:
    """Which option each head got.

    Attributes:
        choice: int64 [layers, kv_heads], index into the table's options.
        loss: sum of the chosen losses, nats a token.
        nbytes: sum of the chosen costs, bytes a row of the batch.
        exact: the optimum was proved, up to the solver's gap.
    """

    choice: np.ndarray
    loss: float
    nbytes: float
    exact: bool


def allocation_of(choice: np.ndarray, loss: np.ndarray, cost: np.ndarray, *, exact: bool) -> Allocation:
    """A choice with its sums.

    Args:
        choice: int64 [L, H].
        loss: float64 [L, H, O].
        cost: float64 [O].
        exact: whether it is proved.
    """
    chosen = np.take_along_axis(loss, choice[..., None], -1)
    return Allocation(choice, float(chosen.sum()), float(cost[choice].sum()), exact)


def relax(loss: np.ndarray, cost: np.ndarray, room: float, buckets: int) -> Allocation | None:
    """Lagrangian relaxation: the price is bisected until the sum fits, then what is left is spent on the upgrades worth most.

    Args:
        loss: float64 [L, H, O], finite.
        cost: float64 [O], bytes a row of the batch.
        room: most bytes a row, in all layers and heads together.
        buckets: most distinct options in a layer.

    Returns:
        The choice, not proved; None where nothing fits.
    """
    if cost.min() * loss[..., 0].size > room:
        return None
    if comb(len(cost), min(buckets, len(cost))) <= SETS:
        best, _ = _bisected(_BySets(loss, cost, buckets), loss, cost, room)
    else:
        swaps = _BySwaps(loss, cost, buckets)
        best, price = _bisected(swaps, loss, cost, room)
        for times in BESIDE:
            swaps.at(price * times)
        best = _combined(swaps.found, cost, room, best)
    return allocation_of(_topped_up(best, loss, cost, room, buckets), loss, cost, exact=False)


def _bisected(picks: _Picks, loss: np.ndarray, cost: np.ndarray, room: float) -> tuple[np.ndarray, float]:
    """The choice at the least price at which it fits, and that price."""
    smallest = max(float(np.diff(np.unique(cost)).min(initial=1.0)), 1e-12)
    low, high = 0.0, 2.0 * float(loss.max()) / smallest + 1e-12
    best = np.full(loss.shape[:2], int(cost.argmin()))
    for _ in range(60):
        price = (low + high) / 2 if low == 0.0 else float(np.sqrt(low * high))
        choice = picks.at(price)
        if cost[choice].sum() <= room:
            best, high = choice, price
        else:
            low = price
        if high - low <= 1e-4 * high:
            break
    return best, high


@dataclass
class _Picks(ABC):
    """What each layer picks at a price.

    Attributes:
        loss: float64 [L, H, O].
        cost: float64 [O].
        buckets: most kinds in a layer.
    """

    loss: np.ndarray
    cost: np.ndarray
    buckets: int

    def at(self, price: float) -> np.ndarray:
        """int64 [L, H]: the options."""
        return np.stack([self._layer(layer, price) for layer in range(len(self.loss))])

    @abstractmethod
    def _layer(self, layer: int, price: float) -> np.ndarray:
        """int64 [H]: of one layer."""


@dataclass
class _BySets(_Picks):
    """By trying every set of kinds."""

    def __post_init__(self) -> None:
        options = len(self.cost)
        self.sets = np.array(list(combinations(range(options), min(self.buckets, options))))

    def _layer(self, layer: int, price: float) -> np.ndarray:
        offered = (self.loss[layer] + price * self.cost)[:, self.sets]  # [H, sets, size]
        best = offered.min(-1).sum(0).argmin()
        return self.sets[best][offered[:, best].argmin(-1)]


@dataclass
class _BySwaps(_Picks):
    """By swaps that go on from a layer's last pick; every pick is kept in `found`, with the sum of its losses."""

    def __post_init__(self) -> None:
        self.found: list[list[tuple[np.ndarray, float]]] = [[] for _ in self.loss]
        self.last: list[list[int]] = [[] for _ in self.loss]

    def _layer(self, layer: int, price: float) -> np.ndarray:
        priced = self.loss[layer] + price * self.cost
        kinds = min((medians(priced, self.buckets, start) for start in ([], self.last[layer])), key=lambda k: _sum(priced, k))
        self.last[layer] = kinds
        choice = np.array(kinds)[priced[:, kinds].argmin(1)]
        if not any((choice == other).all() for other, _ in self.found[layer]):
            self.found[layer].append((choice, float(self.loss[layer][np.arange(len(choice)), choice].sum())))
        return choice


def _sum(priced: np.ndarray, kinds: list[int]) -> float:
    return float(priced[:, kinds].min(1).sum())


def medians(priced: np.ndarray, count: int, start: list[int]) -> list[int]:
    """At most `count` options whose best for each head have a small sum: no exchange of one of them makes it smaller.

    Args:
        priced: float64 [H, O].
        count: most options.
        start: options to begin with; none: the best alone.
    """
    kinds, least = list(start), np.inf
    while True:
        best = least
        for place in range(min(len(kinds) + 1, count)):  # the last place is a new one while there is room
            others = kinds[:place] + kinds[place + 1 :]
            held = priced[:, others].min(1, keepdims=True) if others else np.full((len(priced), 1), np.inf)
            sums = np.minimum(priced, held).sum(0)
            if sums.min() < best:
                best, better = float(sums.min()), [*others, int(sums.argmin())]
        if not best < least * (1 - 1e-12):
            return kinds
        kinds, least = better, best


def _combined(found: list[list[tuple[np.ndarray, float]]], cost: np.ndarray, room: float, best: np.ndarray) -> np.ndarray:
    """One pick a layer, of those found, with the least sum that fits; at worst `best`."""
    layer = np.repeat(np.arange(len(found)), [len(picks) for picks in found])
    lost = np.array([loss for picks in found for _, loss in picks])
    size = np.array([cost[choice].sum() for picks in found for choice, _ in picks])
    one = coo_array((np.ones(len(layer)), (layer, np.arange(len(layer)))), shape=(len(found), len(layer))).tocsr()
    scale = max(float(lost.max()), 1e-300)
    result = milp(
        lost / scale,
        integrality=np.ones(len(lost)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(size[None] / room, -np.inf, 1.0)],
        options={"node_limit": NODES, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        return best
    picked = [int(np.flatnonzero(layer == number)[result.x[layer == number].argmax()]) for number in range(len(found))]
    every = [choice for picks in found for choice, _ in picks]
    choice = np.stack([every[number] for number in picked])
    return choice if size[picked].sum() <= room else best


def _topped_up(choice: np.ndarray, loss: np.ndarray, cost: np.ndarray, room: float, buckets: int) -> np.ndarray:
    """Greedy upgrades within the options that a layer uses (or may still take), the largest gain a byte first."""
    choice = choice.copy()
    heads = np.arange(choice.shape[1])
    while True:
        left = room - cost[choice].sum()
        best_rate = 0.0
        best_move: tuple[int, int, int] | None = None
        for layer, chosen in enumerate(choice):
            extra = cost[None] - cost[chosen][:, None]
            gain = loss[layer, heads, chosen][:, None] - loss[layer]
            allowed = (extra <= left) & (gain > 0)
            used = set(chosen.tolist())
            if len(used) >= buckets:
                allowed &= np.isin(np.arange(len(cost)), list(used))[None]
            rate = np.where(allowed, gain / np.maximum(extra, 1e-9), 0.0)
            if rate.max() > best_rate:
                head, option = np.unravel_index(rate.argmax(), rate.shape)
                best_rate, best_move = rate.max(), (layer, int(head), int(option))
        if best_move is None:
            return choice
        choice[best_move[:2]] = best_move[2]
