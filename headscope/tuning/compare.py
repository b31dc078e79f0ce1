"""The table of methods: policies at equal bytes, on images that no search saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
import torch

from headscope.intervals import mean_interval
from headscope.models import ImageModel
from headscope.policy import CONTROLS, CacheSpec, Policy
from headscope.progress import Progress, of_task
from headscope.runtime import CompressedCache, compressed
from headscope.tuning.measure.free_running import measure_free_running
from headscope.tuning.measure.measurement import ReplayResult
from headscope.tuning.measure.replay import Replay, chunks
from headscope.tuning.propose.presets import WITH_BITS
from headscope.words import FULL, REFERENCES, ROUNDED

TIMED_STEPS = 48
METHOD_COLUMNS = ["method", "budget", "bits", "kept_ratio", "replay_kl", "free_kl", "top1", "cache_bytes", "ms_per_step"]


@dataclass(frozen=True)
class MethodTable:
    """What `compare_methods` measured.

    Attributes:
        methods: one row a method; METHOD_COLUMNS first (bits: all that heads have, such as "16 8 4"; free_kl on images that the
            policy made itself, see `free_running`, of a preset's two forms for the better one, and not of controls), then
            kl_low, kl_high (bootstrap 95 % over images), difference_low, difference_high (the same of this method's KL
            minus the searched policy's, image by image), variant, and control_low, control_high (of a control's KL minus
            that of `ssd`, whose classes it exchanges or deals anew).
        by_row: method, row of the image, kl.
    """

    methods: pd.DataFrame
    by_row: pd.DataFrame


def compare_methods(
    replay: Replay,
    policies: Mapping[str, Policy],
    budget: str,
    spec: CacheSpec,
    *,
    rounded: ImageModel | None = None,
    timed_images: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> MethodTable:
    """Measure every policy on the images of `replay`, and time a decoding step with its cache full.

    Args:
        replay: images that no search saw, under the full cache.
        policies: by name of the method; `searched` is what the others are paired with.
        budget: the limit as the user gave it, for the table.
        spec: what the limit counts; bytes and shares are counted alike, for one image and the prefix of each policy, which
            cache_bytes always has in it.
        rounded: a copy of the model in bfloat16, whose full cache is a row of its own below `full`: the floor of noise.
        timed_images: images generated together in the timed steps, times both streams.
        seed: of the bootstrap behind the intervals.
        progress: told of methods, see `headscope.progress`.
    """
    found: dict[str, ReplayResult] = {}
    tell = of_task(progress, "methods", len(policies))
    for done, (name, policy) in enumerate(policies.items()):
        found[name] = replay.measure(policy)
        if name == FULL and rounded is not None:
            found[ROUNDED] = replay.measure_full(rounded)
        tell(done + 1, len(policies))
    free = _free_running(replay, policies, found, of_task(progress, "methods on their own images"))
    losses = {name: result.kl_by_image.numpy() for name, result in found.items()}
    rows = [
        {
            **_row(name, policies[FULL if name == ROUNDED else name], "100%" if name in REFERENCES else budget, spec),
            "replay_kl": result.kl,
            "free_kl": free.get(name, np.nan),
            "top1": result.top1,
            **dict(zip(("kl_low", "kl_high"), mean_interval(losses[name], seed=seed), strict=True)),
        }
        for name, result in found.items()
    ]
    methods = pd.DataFrame(rows)
    _pair(methods, losses, seed)
    times = step_times(replay, policies, timed_images)
    methods["ms_per_step"] = [1e3 * times.get(name, np.nan) for name in methods["method"]]
    methods = methods[[*METHOD_COLUMNS, *(name for name in methods if name not in METHOD_COLUMNS)]]
    by_row = [{"method": name, "row": row, "kl": float(kl)} for name in found for row, kl in enumerate(found[name].kl_by_row)]
    return MethodTable(methods, pd.DataFrame(by_row))


def _row(name: str, policy: Policy, budget: str, spec: CacheSpec) -> dict[str, object]:
    """What is known of a method before it is measured."""
    counted = spec.replace(prefix=policy.prefix, batch=1)
    return {
        "method": name,
        "budget": budget,
        "bits": " ".join(str(bits) for bits in sorted(set(policy.bits.flatten().tolist()), reverse=True)),
        "kept_ratio": counted.share_of(policy),
        "cache_bytes": counted.replace(count_prefix=True).bytes_of(policy),
        "variant": str(policy.provenance.get("variant", policy.provenance.get("origin", ""))),
    }


def _pair(methods: pd.DataFrame, losses: Mapping[str, np.ndarray], seed: int) -> None:
    """Intervals of differences image by image: to the searched policy, and of controls to SSD."""
    if "searched" in losses:
        pairs = [mean_interval(losses[name] - losses["searched"], seed=seed) for name in methods["method"]]
        methods["difference_low"], methods["difference_high"] = zip(*pairs, strict=True)
    if "ssd" in losses:
        controls = [
            mean_interval(losses[name] - losses["ssd"], seed=seed) if name in CONTROLS else (np.nan, np.nan)
            for name in methods["method"]
        ]
        methods["control_low"], methods["control_high"] = zip(*controls, strict=True)


def _free_running(
    replay: Replay, policies: Mapping[str, Policy], found: Mapping[str, ReplayResult], tell: Callable[[int, int], None]
) -> dict[str, float]:
    """What methods lose on images that they make themselves: of a preset's two forms the better one, controls not at all."""
    forms: dict[str, str] = {}
    for name in sorted(policies, key=lambda name: found[name].kl):
        forms.setdefault(name.removesuffix(WITH_BITS), name)
    wanted = [name for name in forms.values() if name not in (FULL, *CONTROLS)]
    free: dict[str, float] = {FULL: 0.0} if FULL in policies else {}
    for done, name in enumerate(wanted):
        free[name] = measure_free_running(replay.model, replay.samples, policies[name], batch_size=replay.batch_size).kl
        tell(done + 1, len(wanted))
    return free


@torch.inference_mode()
def step_times(replay: Replay, policies: Mapping[str, Policy], images: int) -> dict[str, float]:
    """Median seconds of one decoding step at the end of the image, where every cache is full.

    The recorded tokens are replayed up to the last TIMED_STEPS, which are then fed one by one; methods take turns step by
    step, so that whatever else the machine does falls on all of them alike.

    Args:
        replay: whose model and recorded tokens are used.
        policies: by name of the method.
        images: how many of the replay's images are decoded together.

    Returns:
        Name of the method -> seconds a step.
    """
    model = replay.model
    few = Replay(model, replay.samples.select(range(min(images, len(replay)))), by_stream=False)
    batch = few.batches[0]
    last = few.geometry.tokens - 1
    begin = max(last - TIMED_STEPS, 0)
    caches = {}
    for name, policy in policies.items():
        cache = CompressedCache(policy, prefix=few.prefix)
        with compressed(model, policy):
            few.feed_prefix(batch, cache)
            for start, end in chunks(policy, few.geometry):
                stop = min(end, begin)
                if start < stop:
                    model.forward(batch.tokens[:, start:stop], batch.mask[:, : few.prefix + stop], cache)
        caches[name] = cache
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    for t in range(begin, last):
        for name, policy in policies.items():
            with compressed(model, policy):
                started = _clock(model.device)
                hidden = model.forward(batch.tokens[:, t : t + 1], batch.mask[:, : few.prefix + t + 1], caches[name])
                model.logits(hidden)
                seconds[name].append(_clock(model.device) - started)
    return {name: median(times) for name, times in seconds.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
