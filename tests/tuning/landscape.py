"""A search without a model: a loss with a known best direction, and the search under test on it.

Run as a program it searches in a process of its own:
`python -m tests.tuning.landscape STORAGE TRIALS SAMPLER [KILLED_AT [STUDY]]`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headscope.geometry import Geometry
from headscope.policy import CacheSpec, Limit, ModelShape, Policy
from headscope.tuning import SearchConfig, SearchResult, sweep_presets
from headscope.tuning.measure.measurement import ReplayResult, Watch
from headscope.tuning.measure.options import Losses, Option
from headscope.tuning.study.phases import PhasedStudy
from headscope.tuning.study.storage import StudyStore

SHAPE = ModelShape("toy", 3, 4, 4, 8, Geometry(6, 6), "a", "w")
PREFIX = 5
SCORES = torch.linspace(0, 1, 12).view(3, 4)
LIMIT = Limit.of_share(0.5, CacheSpec(SHAPE, PREFIX))


class Landscape:
    """A loss with a known best direction: semantic heads gain from heavy tokens, the others from window tokens."""

    def __init__(self, images: int = 4, killed_at: int | None = None, slow: float = 0.0) -> None:
        self.measured: list[Policy] = []
        self.images, self.replayed = images, 0
        self.killed_at, self.slow = killed_at, slow

    def __len__(self) -> int:
        return self.images

    def measure(self, policy: Policy, watch: Watch | None = None) -> ReplayResult:
        self.measured.append(policy)
        if len(self.measured) == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.slow)
        gain = (1 - SCORES) * policy.window.clamp(max=8) + SCORES * policy.heavy.clamp(max=12)
        loss = float(torch.exp(-gain.float() / 6).mean()) + 0.01 * abs(float(policy.decay.mean()) - 0.7)
        divergence = loss + torch.linspace(-0.001, 0.001, self.images)[:, None].expand(-1, SHAPE.geometry.tokens - 1)
        true = torch.ones_like(divergence, dtype=torch.bool)
        result = ReplayResult(divergence, true, divergence, SHAPE.geometry)
        for losses in result.kl_by_image.split(4):
            self.replayed += len(losses)
            if watch is not None:
                watch(losses)
        return result


def table() -> Losses:
    options = (Option(0), Option(4), Option(8), Option(1, 6), Option(2, 12), Option(35))
    gains = [[float((1 - s) * min(o.window, 8) + s * min(o.heavy, 12)) for o in options] for s in SCORES.flatten()]
    loss = np.exp(-np.array(gains) / 6).reshape(3, 4, len(options))
    loss[..., -1] = 0.0
    return Losses(options, loss, 6)


def run(
    trials: int,
    storage: Path | str | None = None,
    land: Landscape | None = None,
    *,
    limit: Limit = LIMIT,
    study: str = "",
    **changes: Any,
) -> tuple[SearchResult, Landscape]:
    land = land or Landscape()
    presets = sweep_presets(Landscape(), LIMIT, SCORES).best
    losses = table()
    config = SearchConfig(**{"trials": trials, "seed": 3, **changes})
    return PhasedStudy(land, limit, losses, SCORES, config, StudyStore.open(storage, study), presets).run(), land


if __name__ == "__main__":
    where, count, sampler, *rest = sys.argv[1:]
    kill, study = int(rest[0]) if rest else None, rest[1] if len(rest) > 1 else ""
    run(int(count), where, Landscape(killed_at=kill, slow=0.02), sampler=sampler, study=study)
