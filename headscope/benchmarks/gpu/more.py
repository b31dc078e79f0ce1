"""Step `more`: other batches, Janus-Pro-7B, and the largest batches that are planned for cards of 24 and 80 GB."""

from __future__ import annotations

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.turns import Turn, ours
from headscope.benchmarks.gpu.variants import policies
from headscope.benchmarks.shapes import SIZES
from headscope.models.janus import JanusModel
from headscope.policy import CacheSpec, Policy
from headscope.runtime.decoders.gpu_work import release

BATCHES = (1, 32, 256, 8, 64)  # the most telling first
LARGER, LARGER_BATCH = "janus-pro-7b", 64
MEMORIES = (24, 80)  # GB of the cards that largest batches are planned for
# Beside weights and cache: what a library, a graph and the prompts of a part of the batch take (a guess, to be measured).
SPARE = 1.5e9
NAMES = ("20", "full")


def run(context: Context) -> None:
    """Record a first and a later batch of each, the most telling first."""
    model = context.model()
    if context.dry:
        _both(context, model, 1, batches=1)
        return
    for batch in BATCHES[:3]:
        _both(context, model, batch)
    plans = largest(model)
    for name, batch, label in plans[: len(NAMES)]:
        _turn(context, model, name, batch, batches=1, label=label)
    release(model)
    larger = context.model(LARGER)
    _both(context, larger, LARGER_BATCH)
    release(larger)
    del larger
    for batch in BATCHES[3:]:
        _both(context, model, batch)
    for name, batch, label in plans[len(NAMES) :]:
        _turn(context, model, name, batch, batches=1, label=label)


def _both(context: Context, model: JanusModel, batch: int, batches: int = 2) -> None:
    for name in NAMES:
        _turn(context, model, name, batch, batches=batches)


def _turn(context: Context, model: JanusModel, name: str, batch: int, *, batches: int, label: str = "") -> None:
    try:
        ours(Turn(context, model, name, policies(model)[name], batch, label=label), batches)
    except Exception as error:  # the other batches go on
        context.fault(faults.sentence(error, f"variant {label or name} at batch {batch}"), variant=label or name, batch=batch)
    faults.forget()


def largest(model: JanusModel) -> list[tuple[str, int, str]]:
    """(variant, batch, label such as 20@24GB) of the largest batches beside the weights, by MEMORIES."""
    weights = sum(each.numel() * each.element_size() for each in model.network.parameters())
    found = []
    for memory in MEMORIES:
        for name in NAMES:
            batch = int((memory * 1e9 * 0.95 - weights - SPARE) // image_bytes(model, policies(model)[name]))
            if batch > 0:
                found.append((name, batch, f"{name}@{memory}GB"))
    return found


def image_bytes(model: JanusModel, policy: Policy) -> int:
    """Bytes of the cache of one guided image, and of the logits that sampling it takes.

    Args:
        model: whose image.
        policy: what is kept.
    """
    one = CacheSpec(model.shape, SIZES[model.name].prefix, dtype=str(model.dtype))
    return one.bytes_of(policy) + 40 * model.vocabulary
