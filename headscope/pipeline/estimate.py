"""What a run will take, said before it begins: two quick timings and the counts of the steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from headscope.pipeline.needs import Needs
from headscope.pipeline.opened import Asked
from headscope.runtime import PlainCache
from headscope.tuning import RunConfig, SearchConfig, default_options

# Replays beside the trials: about 60 variants of presets, half of them given up early, and 7 answers of the solver.
OTHER_REPLAYS = 40
# A replay in chunks of a row against one parallel call, measured on the bundled model (1.9 to 3.1).
CHUNKED = 2.5
# Replays that the gradients of a table take as long as.
GRADIENTS = 8
# Decoding steps that are timed.
STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: by step.
        needs: memory, by part.
        calibration: prompts to trace and search on.
        unseen: prompts to judge by.
    """

    seconds: dict[str, float]
    needs: Needs
    calibration: int
    unseen: int

    @property
    def minutes(self) -> float:
        """Of all steps."""
        return sum(self.seconds.values()) / 60


@torch.inference_mode()
def estimate(asked: Asked, needs: Needs) -> Estimate:
    """Time one parallel pass over one image and a few decoding steps; count the rest.

    Args:
        asked: model and prompts.
        needs: memory that they take.
    """
    model, config = asked.model, asked.config
    calibration, unseen = len(asked.calibration), len(asked.unseen)
    tokens, streams = model.shape.geometry.tokens, asked.streams
    rows = streams * needs.batch
    embeds = model.embed_tokens(torch.zeros(streams, tokens, dtype=torch.int64, device=model.device))
    model.forward(embeds[:, :8], None, None)
    parallel = _least(lambda: model.logits(model.forward(embeds, None, None)), 2)
    step = embeds[:1, :1].expand(rows, -1, -1)
    cache = PlainCache(model.shape.layers, tokens // 2 + STEPS)
    model.forward(embeds[:1, : tokens // 2].repeat(rows, 1, 1), None, cache)
    decoding = _least(lambda: model.forward(step, None, cache), STEPS)
    replayed = CHUNKED * parallel
    searched = min(config.search.images or calibration, calibration)
    scores = (0, 1) if config.search.compares else (0,)
    offered = (config.search.each_bits, config.search.options, config.search.each_prompt, scores)
    options = len(default_options(model.shape.geometry, *offered))
    seconds = {
        "trace": _batches(calibration, config) * tokens * decoding + 3 * parallel * calibration,
        "heads": 2.0,
        "search": _search(config.search, options, searched, parallel),
        "compare": _batches(unseen, config) * tokens * decoding + 7 * unseen * replayed,
        "generate": _batches(unseen, config) * tokens * decoding + 2 * unseen * needs.pixel_seconds,
        "report": 5.0,
    }
    return Estimate(seconds, needs, calibration, unseen)


def _search(config: SearchConfig, options: int, images: int, parallel: float) -> float:
    """Seconds of the table by gradients (a replay an option), the presets and the trials."""
    replays = (config.trials + (5 if config.quick else OTHER_REPLAYS)) * images
    table = 0 if config.quick else (options + GRADIENTS) * config.table_images
    return (replays + table) * CHUNKED * parallel


def _batches(images: int, config: RunConfig) -> int:
    return math.ceil(images / config.batch_size)


def _least(work: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
