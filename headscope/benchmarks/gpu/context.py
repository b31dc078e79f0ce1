"""What a step is told, and how it tells what it has measured."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from headscope.benchmarks.gpu import records
from headscope.benchmarks.gpu.roofline import Roofline
from headscope.benchmarks.shapes import SIZES, Size, random_janus
from headscope.errors import ModelError
from headscope.models import resolve_device
from headscope.models.janus import JanusModel

CAPABILITY = 8  # the oldest that has bfloat16 products and asynchronous copies


@dataclass(frozen=True)
class Context:
    """One step's orders.

    Attributes:
        step: its name.
        out: the folder of the results.
        shape: a name of SIZES.
        dtype: of the weights, "bfloat16" or "float32".
        device: "cuda", "cuda:1"; "cpu" in a dry run, where kernels run in Triton's interpreter.
        batch: images generated together, each two rows under guidance.
        until: when the step's time is over, in seconds of `time.time`.
        dry: whether to go through the code only, with the least of everything; its times mean nothing.
        tune: whether the settings that step `tune` finds best are kept for the decoder.
    """

    step: str
    out: Path
    shape: str = "janus-pro-1b"
    dtype: str = "bfloat16"
    device: str = "cuda"
    batch: int = 128
    until: float = float("inf")
    dry: bool = False
    tune: bool = False

    @classmethod
    def parsed(cls, text: str) -> Context:
        """From `written`."""
        found = json.loads(text)
        return cls(**{**found, "out": Path(found["out"])})

    def written(self) -> str:
        """As one line of JSON."""
        return json.dumps({**asdict(self), "out": str(self.out)})

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device != "cpu"

    @property
    def size(self) -> Size:
        """Of the shape."""
        return SIZES[self.shape]

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the weights."""
        return self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return getattr(torch, self.dtype)

    @cached_property
    def card(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    def left(self) -> float:
        """Seconds until the step's time is over."""
        return self.until - time.time()

    def model(self, shape: str | None = None) -> JanusModel:
        """A Janus of random weights on the device.

        Args:
            shape: another name of SIZES.
        """
        return random_janus(shape or self.shape, self.torch_dtype, self.device)

    def record(self, what: str, value: Any, unit: str = "", **more: Any) -> None:
        """Append one result.

        Args:
            what: was measured.
            value: a number, or a text or a list where it is none.
            unit: of the number.
            **more: what else belongs to it: `decoder` where one ran, `predicted` in the same unit, `batch`, `variant`, ...;
                `shape` and `dtype` where they are not the context's.
        """
        about = {"step": self.step, "shape": self.shape, "dtype": self.dtype, "device": self.card}
        now = {"at": round(time.time(), 3)}
        records.append(self.out, {**about, "what": what, "value": value, "unit": unit, **more, **now})

    def fault(self, sentence: str, **more: Any) -> None:
        """Append what went wrong, as a sentence."""
        self.record("fault", sentence, **more)

    def roofline(self) -> Roofline | None:
        """What this folder's step `card` measured; None before it has run."""
        found = {one["what"]: one["value"] for one in records.read(self.out) if one["step"] == "card"} if self._any() else {}
        if not (found.get("bandwidth of reading") and found.get("matrix product")):
            return None
        return Roofline(found["bandwidth of reading"], found["matrix product"])

    def _any(self) -> bool:
        return (self.out / records.RESULTS).is_file()


def check_card(device: str) -> None:
    """Refuse a device that no kernel of ours runs on.

    Args:
        device: as torch names it.

    Raises:
        ModelError: no such device, an old card, or no Triton.
    """
    resolve_device(device)
    if find_spec("triton") is None:
        raise ModelError("Triton: not installed, and no kernel runs without it; install the triton that torch asks for.")
    if device == "cpu":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ModelError(
            f"device {device}: {name} has compute capability {major}.{minor}, not {CAPABILITY}.0 or more; use a newer card."
        )


def check_memory(device: str, needed: int, what: str) -> None:
    """Refuse what can't fit into the free memory of the card.

    Args:
        device: as torch names it; a CPU is not asked.
        needed: bytes.
        what: is to be put there.

    Raises:
        ModelError: there is less.
    """
    if device == "cpu":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise ModelError(
            f"device {device}: {free / 1e9:.1f} GB are free, {what} takes {needed / 1e9:.1f} GB; use a smaller shape or batch."
        )
