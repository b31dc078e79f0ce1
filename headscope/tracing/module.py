"""`trace_module`: the statistics of any module's attention, of a family we know or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import Group, attach, expect_module
from headscope.tracing import trace as _trace  # noqa: F401 - registers the statistics
from headscope.tracing.accumulated import Accumulated
from headscope.tracing.accumulators import Accumulator
from headscope.tracing.catalogue import chosen_statistics
from headscope.tracing.selection import Selection


@dataclass(frozen=True)
class ModuleTrace:
    """What one forward of a module showed.

    Attributes:
        table: module, sequence, head, then a column a statistic.
        layers: the sums of each module that attends causally, by its name, in the order of calls.
        skipped: a sentence for each module whose attention could not be traced, naming it: those whose call was seen and is not
            causal self-attention over the image, and those that are called attention and made no call that can be seen. What a
            module of another name computes by plain products cannot be noticed.
    """

    table: pd.DataFrame
    layers: dict[str, Accumulated]
    skipped: list[str]


@torch.inference_mode()
def trace_module(
    module: nn.Module,
    inputs: Any,
    geometry: Geometry,
    *,
    prefix: int | None = None,
    selection: Selection | None = None,
) -> ModuleTrace:
    """Run `module` once and trace all causal self-attention in it; its output is not changed, and no hook stays on it.

    Args:
        module: any PyTorch module that attends through transformers' attention interface, as ImageGPT does, or by
            `scaled_dot_product_attention`.
        inputs: a dictionary of keyword arguments, a sequence of positional ones, or one tensor.
        geometry: of the image, whose tokens end the sequence.
        prefix: tokens before it, padding included; unless it is given, the sequence less the whole image.
        selection: which heads, rows and queries, and the full set; everything of the default set unless given.

    Raises:
        ModelError: no module, but an image model, say.
        DataError: no attention was seen that can be traced; the sentence names the modules and says why.

    Example:
        >>> found = trace_module(my_decoder, {"x": tokens}, Geometry(16, 16))  # doctest: +SKIP
        >>> found.table.groupby("module")["row_above"].max()  # doctest: +SKIP
    """
    expect_module(module, "trace_module")
    chosen = selection or Selection()
    layers: dict[str, Accumulated] = {}
    skipped: list[str] = []

    def show(name: str, group: Group, causal: bool) -> None:
        reason = _reason(group, causal, geometry, prefix)
        if reason is not None:
            skipped.append(f"{name}: {reason}.")
            return
        before = group.q.shape[2] - geometry.tokens if prefix is None else prefix
        bands = Accumulator(geometry, before, chosen).add(group)
        total = bands[0]
        for band in bands[1:]:
            total = total.plus(band)
        key, number = name, 1
        while key in layers:  # a module that attends several times in one forward
            number += 1
            key = f"{name} ({number})"
        layers[key] = total

    with attach(module, show), _attentions(module) as ran:
        _call(module, inputs)
    seen = [*layers, *(sentence.split(":")[0] for sentence in skipped)]
    for name, kind in ran.items():
        if not any(
            other == name or other.startswith((f"{name}.", f"{name} (")) or name.startswith(f"{other}.") for other in seen
        ):
            skipped.append(
                f"{name}: {kind} computes its attention by itself, so it cannot be seen: let it use "
                "scaled_dot_product_attention."
            )
    if not layers:
        why = " ".join(skipped) or (
            f"{type(module).__name__} made no call of scaled_dot_product_attention, so its attention cannot be seen: let it "
            "compute attention by that function, or by transformers' attention interface."
        )
        raise DataError(why)
    return ModuleTrace(_table(layers, chosen), layers, skipped)


@contextmanager
def _attentions(module: nn.Module) -> Iterator[dict[str, str]]:
    """Inside the block, names and classes of the sub-modules that are called attention and run, in their order."""
    ran: dict[str, str] = {}
    handles = []
    for name, part in module.named_modules():
        if name and "attention" in type(part).__name__.lower():
            handles.append(part.register_forward_hook(lambda m, *_, name=name: ran.setdefault(name, type(m).__name__) and None))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _call(module: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        module(**inputs)
    elif isinstance(inputs, Sequence):
        module(*inputs)
    else:
        module(inputs)


def _reason(group: Group, causal: bool, geometry: Geometry, prefix: int | None) -> str | None:
    """Why this attention cannot be traced, or None."""
    queries, keys = group.q.shape[2], group.k.shape[2]
    if queries != keys:
        return f"{queries} queries look at {keys} keys, which is attention to something else, or to a cache; expected as many"
    if group.altered is not None:
        return f"it has {group.altered}, which its statistics would leave out"
    if not causal:
        return "its tokens look at later ones, so it is no causal decoder"
    before = queries - geometry.tokens if prefix is None else prefix
    if before < 0 or not 0 < queries - before <= geometry.tokens:
        expected = f"{before} of a prefix and then up to {geometry.tokens} of a {geometry} image"
        return f"the sequence has {queries} tokens, expected {expected}"
    return None


def _table(layers: dict[str, Accumulated], selection: Selection) -> pd.DataFrame:
    tables = []
    for name, sums in layers.items():
        values = {key: one(sums).float().cpu().numpy() for key, one in chosen_statistics(selection.full).items()}
        batch, heads = sums.squares.shape[:2]
        for sequence in range(batch):
            keys = {"module": name, "sequence": sequence, "head": range(heads)}
            tables.append(pd.DataFrame(keys | {key: value[sequence] for key, value in values.items()}))
    return pd.concat(tables, ignore_index=True)
