"""Times of a device's work, without launches and waits in them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(call: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Mean seconds of a call after one that is not counted; on a GPU between two events around all repeats.

    Args:
        call: its work follows on the device's current stream.
        device: as torch names it.
        repeats: calls in a row.
    """
    call()
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) / repeats
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def captured(call: Callable[[], object], device: str) -> Callable[[], object]:
    """The call as a CUDA graph, so that launches cost nothing; on a CPU the call itself.

    Args:
        call: works on tensors that stay.
        device: as torch names it.
    """
    if device == "cpu":
        return call
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        call()  # picks the libraries' algorithms
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def waited(device: str) -> float:
    """The time in seconds, once the device has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
