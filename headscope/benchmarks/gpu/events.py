"""Step `events`: what a decoding step takes at several tokens, what is paid once, and where the time of a step goes."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from headscope.benchmarks.gpu import faults
from headscope.benchmarks.gpu.clock import waited
from headscope.benchmarks.gpu.context import Context
from headscope.benchmarks.gpu.roofline import live_bytes, step_parts
from headscope.benchmarks.gpu.turns import image_tokens
from headscope.benchmarks.gpu.variants import decoder_of, policies
from headscope.models.janus import JanusModel
from headscope.policy import Policy
from headscope.runtime.decoders.llama_cuda import LlamaCudaDecoder
from headscope.storage import write_text

PROFILE = "profile.txt"
SHARES = {"first": 0.0, "quarter": 0.25, "half": 0.5, "last": 1.0}  # of an image: tokens 0, 144, 288 and 574 of 576
PROFILED = 10  # steps
VARIANTS = ("20", "full")


def run(context: Context) -> None:
    """Record both variants, and write their profiles."""
    model = context.model()
    kinds = policies(model)
    profiles: list[str] = []
    for name in VARIANTS[:1] if context.dry else VARIANTS:
        faults.forget()
        try:
            _variant(context, model, name, kinds[name], profiles)
        except Exception as error:  # the other variant goes on
            context.fault(faults.sentence(error, f"variant {name}"), variant=name, batch=context.batch)


def _variant(context: Context, model: JanusModel, name: str, policy: Policy, profiles: list[str]) -> None:
    decoder = _once(context, model, name, policy)
    _steps(context, name, decoder)
    profiles.append(f"{name}: {context.shape}, batch {context.batch}, {context.card}\n{_profile(context, decoder)}")
    write_text(context.out / PROFILE, "\n\n".join(profiles))


def _once(context: Context, model: JanusModel, name: str, policy: Policy) -> LlamaCudaDecoder:
    """Construct, prefill and capture, timed."""
    about = {"variant": name, "batch": context.batch, "decoder": LlamaCudaDecoder.name}
    began = waited(context.device)
    decoder = decoder_of(context, model, policy)
    context.record("construct", 1e3 * (waited(context.device) - began), "ms", **about)
    for which in ("first", "later"):
        began = waited(context.device)
        with torch.inference_mode():
            decoder.prefill(model.tokenize(["a"] * context.batch), True)
        context.record(f"prefill, {which}", 1e3 * (waited(context.device) - began), "ms", **about)
    seconds = []
    for seed in (0, context.batch):
        began = waited(context.device)
        image_tokens(decoder, context.batch, seed)
        seconds.append(waited(context.device) - began)
    context.record("capture and first compilation", 1e3 * (seconds[0] - seconds[1]), "ms", **about)
    context.record("a later batch", 1e3 * seconds[1], "ms", **about)
    return decoder


def _steps(context: Context, name: str, decoder: LlamaCudaDecoder) -> None:
    """A captured step between the device's own events, which the decoder's reports place."""
    marks = _marks(context, decoder)
    tokens, stride = decoder.model.shape.geometry.tokens, decoder.policy.stride
    wanted = {label: round(share * (tokens - 2)) for label, share in SHARES.items()}
    wanted["ends a stride"] = tokens // 2 // stride * stride - 1
    live = live_bytes(decoder.policy, context.size.prefix, 2 * context.batch, context.itemsize)
    roofline = context.roofline()
    for label, token in wanted.items():
        found = _around(marks, token)
        about = {"variant": name, "batch": context.batch, "decoder": decoder.name, "token": token, "which": label}
        if found is None:
            context.fault(f"variant {name}: the decoder reports no tokens around {token}, so that step has no time.", **about)
            continue
        ms, steps = found
        parts = step_parts(context.size, 2 * context.batch, context.itemsize, float(live[token]))
        least = None if roofline is None else 1e3 * roofline.step(parts)
        context.record("step", ms, "ms", predicted=least, mean_of_steps=steps, **about)
    if roofline is not None:
        middle = step_parts(context.size, 2 * context.batch, context.itemsize, float(live[tokens // 2]))
        least_of = {part.name: 1e3 * roofline.seconds(part) for part in middle}
        context.record("floor of a step, by part", least_of, "ms", variant=name, batch=context.batch)


def _marks(context: Context, decoder: LlamaCudaDecoder) -> dict[int, float]:
    """ms since the first report, by the tokens that every image had."""
    events: dict[int, torch.cuda.Event] = {}
    times: dict[int, float] = {}

    def mark(count: int) -> None:
        if context.cuda:
            events[count] = torch.cuda.Event(enable_timing=True)
            events[count].record()
        else:
            times[count] = 1e3 * waited(context.device)

    image_tokens(decoder, context.batch, 0, mark)
    waited(context.device)
    if events:
        first = events[min(events)]
        times = {count: first.elapsed_time(event) for count, event in events.items()}
    return times


def _around(marks: dict[int, float], token: int) -> tuple[float, int] | None:
    """ms a step of the narrowest two reports that have the feeding of `token` between them, and how many steps they span.

    Token t is fed between the reports of t + 1 and t + 2 tokens. Where nothing was reported before the first step, the next
    one stands for it.
    """
    before = [count for count in marks if count <= max(token + 1, min(marks))]
    after = [count for count in marks if before and count > max(before) and count >= token + 2]
    if not before or not after:
        return None
    begin, end = max(before), min(after)
    return (marks[end] - marks[begin]) / (end - begin), end - begin


def _profile(context: Context, decoder: LlamaCudaDecoder) -> str:
    """The kernels of some steps from the middle of the image, uncaptured, as a table; 40 at most."""
    steps = 2 if context.dry else PROFILED
    first = decoder.model.shape.geometry.tokens // 2
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.cuda else [])]
    with torch.inference_mode():

        def some() -> None:
            for t in range(first, first + steps):
                decoder.uncaptured(t)

        if not context.dry:
            some()
        with profile(activities=activities) as found:
            some()
            waited(context.device)
    order = "self_cuda_time_total" if context.cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    return f"{steps} steps from token {first}\n{table}"
