"""Step `images`: whole images with a fifth of the cache, all of it, and transformers' `generate`, taking turns."""

from __future__ import annotations

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.clock import waited
from headscope.benchmarks.gpu.context import Context, check_memory
from headscope.benchmarks.gpu.roofline import weight_bytes
from headscope.benchmarks.gpu.turns import Turn, generated, ours, theirs
from headscope.benchmarks.gpu.variants import GENERATE, policies
from headscope.models.janus import JanusModel

ROUNDS = 3
CUT = 64  # tokens of an image that would not fit into the time
SLOW = 0.3  # share of the time that is left which one batch of theirs may take
PROBED = 8  # tokens from which that is projected


def run(context: Context) -> None:
    """Record every batch of every variant, round after round, as long as there is time."""
    check_memory(context.device, weight_bytes(context.size, context.itemsize), f"{context.shape} alone")
    model = context.model()
    kinds = policies(model)
    order = [*kinds, *GENERATE]
    tokens = dict.fromkeys(order, model.shape.geometry.tokens)
    notes = dict.fromkeys(order, "")
    took: dict[str, float] = {}
    for repeat in range(1 if context.dry else ROUNDS):
        for name in list(order):
            if took.get(name, 0.0) * 1.1 > context.left():
                continue
            turn = Turn(context, model, name, kinds.get(name, kinds["full"]), context.batch, repeat)
            try:
                if name in GENERATE and not repeat:
                    tokens[name], notes[name] = _cut(context, model, name)
                took[name] = theirs(turn, tokens[name], notes[name]) if name in GENERATE else ours(turn)
            except Exception as error:  # the other variants go on
                order.remove(name)
                context.fault(faults.sentence(error, f"variant {name}"), variant=name, batch=context.batch)
            faults.forget()


def _cut(context: Context, model: JanusModel, name: str) -> tuple[int, str]:
    """How many tokens of theirs fit into the time, and what to say of it."""
    whole = model.shape.geometry.tokens
    few = min(PROBED, whole)
    times = []
    for count in (1, 1, few):  # the first time pays for whatever is done once
        began = waited(context.device)
        generated(model, name, context.batch, count)
        times.append(waited(context.device) - began)
    projected = times[1] + max(times[2] - times[1], 0.0) * (whole - 1) / max(few - 1, 1)
    if projected <= SLOW * context.left():
        return whole, ""
    tokens = min(CUT, whole)
    return tokens, f"{tokens} of {whole} tokens, since an image was projected to take {projected:.0f} s or more"
