"""How many policies a minute replay measures, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd
from torch.profiler import ProfilerActivity, profile

from headscope.policy.footprint import Limit
from headscope.policy.policy import Policy
from headscope.policy.presets import H2O, Streaming
from headscope.tuning import Replay

# Operations by what they are for; the rest of the wall clock is small operations and Python.
PARTS = {
    "linear layers": ("aten::mm", "aten::addmm", "aten::linear"),
    "attention": ("aten::bmm", "aten::_scaled_dot_product", "aten::_softmax", "aten::baddbmm"),
    "choosing": ("aten::sort", "aten::gather", "aten::index_select", "aten::scatter", "aten::index_copy", "aten::argmin"),
    "comparing": ("aten::_log_softmax", "aten::exp", "aten::argmax", "aten::lerp"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::masked_fill"),
}


def bench_replay(replay: Replay, keep: str = "20%", repeats: int = 3) -> pd.DataFrame:
    """One row a kind of policy: seconds a policy (least of `repeats`), policies a minute, and the share of each part.

    Window heads need one pass, heavy heads a pass a stride: a row, half a row, a token.
    """
    shape = replay.model.shape
    dtype = str(replay.dtype).removeprefix("torch.")
    limit = Limit.from_keep(shape, keep, prefix=replay.prefix, streams=replay.streams, dtype=dtype)
    row = shape.geometry.span
    even = H2O(0.5).build(shape, limit, prefix=replay.prefix)
    policies = {"window only": Streaming().build(shape, limit, prefix=replay.prefix)}
    policies |= {f"half heavy, stride {stride}": even.replace(stride=stride) for stride in dict.fromkeys((row, row // 2, 1))}
    return pd.DataFrame([_row(replay, name, policy, repeats) for name, policy in policies.items()])


def _row(replay: Replay, name: str, policy: Policy, repeats: int) -> dict[str, object]:
    seconds = min(replay.measure(policy).seconds for _ in range(repeats))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        replay.measure(policy)
        wall = time.perf_counter() - began
    own = {event.key: event.self_cpu_time_total * 1e-6 for event in found.key_averages()}
    shares = {part: _sum(own, names) / wall for part, names in PARTS.items()}
    return {
        "policy": name,
        "pictures": len(replay),
        "seconds": seconds,
        "policies_minute": 60 / seconds,
        **shares,
        "small operations and Python": 1 - sum(shares.values()),
    }


def _sum(own: dict[str, float], names: Sequence[str]) -> float:
    return sum(seconds for key, seconds in own.items() if key.startswith(tuple(names)))
