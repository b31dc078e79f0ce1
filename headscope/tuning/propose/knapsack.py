"""Allocators: spend a byte limit on the options of a sensitivity table. Pure functions; no model is run.

The losses of single heads nearly add up (sum .0126 against .0131 measured together, design.md), so the allocation with
the least sum is a multiple-choice knapsack: one option a head, bytes below the limit, and at most `buckets` distinct
options in a layer, because the cache stores one dense bucket for each.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pandas as pd
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from headscope.errors import BudgetError
from headscope.policy import Limit, Policy
from headscope.tuning.config import BUCKETS
from headscope.tuning.measure.options import ANCHOR, Losses, interpolated, losses_from
from headscope.tuning.propose.relaxation import Allocation, allocation_of, relax

# The exact solver may stop this close to the optimum: far below what the table's own noise is worth.
GAP = 2e-3
# Branches of the exact solver: enough to prove 64 heads x 20 options. Seconds that no such problem came near.
NODES, PATIENCE = 500, 120.0
# Heads times options above which the relaxation stands alone: 64 x 400 took the exact solver up to 16 s, for .1 % less.
MOST = 16_000


def solve(
    table: pd.DataFrame | Losses,
    limit: Limit,
    stride: int,
    buckets: int = BUCKETS,
    *,
    anchor: int = ANCHOR,
    fading: float = 1.0,
    interpolate: bool = True,
    nodes: int = NODES,
) -> Policy:
    """The policy whose summed table loss is least under `limit`.

    Args:
        table: of `measure_sensitivity`, or its arrays; measured at another stride, it is carried over
            (`Losses.at_stride`).
        limit: the byte limit.
        stride: tokens between two choices of the heavy set.
        buckets: most distinct options in a layer.
        anchor: first image tokens kept by every head, on top of its option (default: as tables are measured).
        fading: times the decay of each head's option.
        interpolate: also offer sizes between the measured ones.
        nodes: branches that the exact solver may try; 0 leaves it to the relaxation, 0.1 to 1.5 % above the optimum and
            forty times faster. Counted in branches, not in seconds, so that the answer is the same on every machine.

    Raises:
        BudgetError: no choice of options fits the limit.
        DataError: the table is empty or of another model.
    """
    shape, geometry = limit.spec.shape, limit.spec.shape.geometry
    losses = table if isinstance(table, Losses) else losses_from(table, shape.layers, shape.kv_heads, geometry)
    losses = losses.at_stride(stride)
    if interpolate:
        losses = interpolated(losses)
    cost = option_bytes(losses, limit, stride, anchor)
    room = limit.per_row
    allocation = allocate(losses.loss, cost, room, buckets, nodes=nodes)
    if allocation is None:
        smallest = float(cost.min()) * shape.layers * shape.kv_heads
        raise BudgetError(
            f"No choice of options fits {room:,.0f} bytes a row at stride {stride}: the smallest takes "
            f"{smallest:,.0f}; expected a limit of at least that, or a smaller stride."
        )
    fields = np.array([option.numbers() for option in losses.options])[allocation.choice]
    heavy = torch.from_numpy(fields[..., 1]).to(torch.int32)
    faded = fading * torch.from_numpy(fields[..., 2]).float()
    return Policy.uniform(
        shape,
        window=torch.from_numpy(fields[..., 0]).to(torch.int32),
        heavy=heavy,
        anchor=anchor,
        # The score of a head without heavy tokens is never read: one value, so that such heads share a bucket.
        decay=torch.where(heavy > 0, faded, torch.ones_like(faded)),
        stride=stride,
        prefix=limit.spec.prefix,
        bits=torch.from_numpy(fields[..., 3]).to(torch.uint8),
        prompt=torch.from_numpy(fields[..., 4]).to(torch.uint8),
        score=torch.where(heavy > 0, torch.from_numpy(fields[..., 5]).to(torch.uint8), 0),
        provenance={"method": "solver", "predicted_loss": allocation.loss},
    )


def option_bytes(losses: Losses, limit: Limit, stride: int, anchor: int = 0) -> np.ndarray:
    """float64 [O]: bytes a row of one head with each option.

    Args:
        losses: whose O options are counted.
        limit: whose `spec` says what is counted.
        stride: tokens between two choices of heavy tokens, which need a buffer of as many.
        anchor: first image tokens that a head keeps besides, unless it keeps everything.
    """
    window = np.array([option.window for option in losses.options])
    heavy = np.array([option.heavy for option in losses.options])
    anchors = np.where(window + heavy >= limit.spec.shape.geometry.tokens - 1, 0, anchor)
    bits, prompt = (np.array([getattr(option, name) for option in losses.options]) for name in ("bits", "prompt"))
    return limit.spec.head_bytes(window, heavy, anchors, stride, bits, prompt).astype(np.float64)


def allocate(loss: np.ndarray, cost: np.ndarray, room: float, buckets: int, *, nodes: int = NODES) -> Allocation | None:
    """The choice of options with the least sum of losses: a multiple-choice knapsack. None where nothing fits.

    Exact by `scipy.optimize.milp` (HiGHS); the relaxation (`relax`) is the fallback and the check.

    Args:
        loss: float64 [L, H, O], nats a token; infinite where it is not known.
        cost: float64 [O], bytes a row of the batch.
        room: most bytes a row, in all layers and heads together.
        buckets: most distinct options in a layer.
        nodes: branches that the exact solver may try; 0 leaves it to the relaxation, and so do more than MOST cells.
    """
    finite = np.where(np.isfinite(loss), loss, 1e3 + np.nanmax(loss[np.isfinite(loss)]))
    kept = _undominated(finite, cost)
    finite, cost = finite[:, :, kept], cost[kept]
    quick = relax(finite, cost, room, buckets)
    exact = _milp(finite, cost, room, buckets, nodes) if nodes and finite.size <= MOST else None
    found = [allocation for allocation in (exact, quick) if allocation is not None]
    if not found:
        return None
    best = min(found, key=lambda allocation: allocation.loss)
    proved = exact is not None and exact.exact
    return Allocation(kept[best.choice], best.loss, best.nbytes, proved)


def _undominated(loss: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Indices of the options that are not beaten in every head by one that costs no more."""
    order = np.lexsort((loss.sum((0, 1)), cost))
    kept: list[int] = []
    for number in order:
        if not any((loss[:, :, other] <= loss[:, :, number]).all() for other in kept):
            kept.append(int(number))
    return np.array(sorted(kept))


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS writes a line of its own debugging to file descriptor 1 at times, whatever its options say."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        yield
    finally:
        with suppress(OSError, TypeError, AttributeError):  # C's own buffer, which is else written after the block
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(sink)
        os.close(kept)


def _milp(loss: np.ndarray, cost: np.ndarray, room: float, buckets: int, nodes: int) -> Allocation | None:
    """Binary x[l, h, o] (head has option) and u[l, o] (layer uses option), x <= u, sum of u a layer <= buckets."""
    layers, heads, options = loss.shape
    chosen = np.arange(loss.size).reshape(loss.shape)
    used = loss.size + np.arange(layers * options).reshape(layers, options)
    size = loss.size + used.size
    constraints = [
        _rows([(chosen[layer, head], 1.0) for layer in range(layers) for head in range(heads)], size, 1, 1),
        _rows([(chosen.ravel(), np.tile(cost, layers * heads))], size, -np.inf, room),
    ]
    if buckets < min(heads, options):
        pairs = np.stack([chosen.ravel(), np.broadcast_to(used[:, None, :], loss.shape).ravel()], 1)
        constraints.append(_rows([(pair, np.array([1.0, -1.0])) for pair in pairs], size, -np.inf, 0))
        constraints.append(_rows([(used[layer], 1.0) for layer in range(layers)], size, -np.inf, buckets))
    with _silent():
        result = milp(
            np.concatenate([loss.ravel(), np.zeros(used.size)]),
            integrality=np.ones(size),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"node_limit": nodes, "time_limit": PATIENCE, "mip_rel_gap": GAP},
        )
    if result.x is None:
        return None
    choice = result.x[: loss.size].reshape(loss.shape).argmax(-1)
    allocation = allocation_of(choice, loss, cost, exact=result.status == 0)
    fits = allocation.nbytes <= room and max(len(set(row)) for row in choice.tolist()) <= buckets
    return allocation if fits else None


def _rows(rows: list[tuple[np.ndarray, np.ndarray | float]], size: int, low: float, high: float) -> LinearConstraint:
    """One constraint a row, given as (columns, coefficients)."""
    columns = np.concatenate([np.asarray(indices) for indices, _ in rows])
    values = np.concatenate([np.broadcast_to(value, len(indices)) for indices, value in rows])
    lines = np.repeat(np.arange(len(rows)), [len(indices) for indices, _ in rows])
    return LinearConstraint(coo_array((values, (lines, columns)), shape=(len(rows), size)).tocsr(), low, high)
