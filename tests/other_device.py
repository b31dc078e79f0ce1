"""A device that is none: tensors that are not on the CPU as far as torch is told, and lie there all the same.

What mixes tensors of two devices, or takes numbers from one without fetching them, stops as it does on a GPU; what runs gives
what the CPU gives. `python -m tests.other_device FOLDER` does `work` there on the model in a folder, and prints what it found.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "spare"
# They take indices, or numbers to copy, from the CPU, as they do on a GPU.
_TAKE_FROM_CPU = ("copy_", "index", "index_put", "index_put_", "_index_put_impl_", "_to_copy", "to")


class Spare(torch.Tensor):
    """A tensor on the device, around one on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Spare:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(f"{NAME}:0"),
        )
        found.held = held
        return found

    def numpy(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        return called(operator, arguments, options or {})


class Everywhere(TorchDispatchMode):
    """Catches what makes tensors on the device."""

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        return called(operator, arguments, options or {})


class Generator(torch.Generator):
    """Of random numbers, with a device that it is for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        found = super().__new__(cls, "cpu")
        found.of_spare = is_spare(torch.device(device))
        return found


class Grads(contextlib.ContextDecorator):
    """In place of `torch.inference_mode`, which tensors of a class of one's own do not take part in."""

    def __new__(cls, mode: Any = True) -> Any:
        return torch.no_grad()(mode) if callable(mode) else super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        if self.mode:
            torch.set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(self.before)


def is_spare(device: torch.device) -> bool:
    return device.type == NAME


def called(operator: Any, arguments: tuple, options: dict) -> Any:
    """One operator on tensors of either device, refused where it would be on a GPU."""
    flat = tree_flatten((arguments, options))[0]
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    spare = any(isinstance(one, Spare) for one in tensors)
    devices = [one for one in flat if isinstance(one, torch.device)]
    to_spare = is_spare(devices[0]) if devices else spare
    mixed = spare and any(not isinstance(one, Spare) and one.dim() > 0 for one in tensors)
    if mixed and operator._schema.name.removeprefix("aten::") not in _TAKE_FROM_CPU:
        raise RuntimeError(f"{operator}: expected all tensors on one device, found {NAME} and cpu")
    for one in flat:
        if isinstance(one, torch.Generator) and getattr(one, "of_spare", False) != to_spare:
            raise RuntimeError(f"{operator}: a generator of another device")
    written = options.get("out", flat[0]) if operator._schema.is_mutable else None
    arguments, options = tree_map(_on_cpu, (arguments, options))
    found = operator(*arguments, **options)
    if operator._schema.name == "aten::_local_scalar_dense" or not (spare or to_spare):
        return found
    if isinstance(written, Spare):
        return written
    return tree_map(lambda one: Spare(one) if isinstance(one, torch.Tensor) else one, found) if to_spare else found


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Spare:
    """What torch makes by itself where numbers of a list become indices."""
    return Spare(torch.empty_strided(size, stride, dtype=dtype))


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """And how it fills it."""
    _on_cpu(target).copy_(_on_cpu(source))
    return target


def _on_cpu(one: Any) -> Any:
    if isinstance(one, Spare):
        return one.held
    return torch.device("cpu") if isinstance(one, torch.device) and is_spare(one) else one


def work(folder: str, device: str) -> dict[str, Any]:
    """What a trace, a sensitivity table, replays and images of a small model come to.

    Args:
        folder: of the model, a decoder of a few layers and KV heads.
        device: where it runs.
    """
    # Only now: what they are decorated with has to be that of `main`.
    from headscope import trace
    from headscope.models import load_model
    from headscope.policy import Policy
    from headscope.runtime import generate
    from headscope.tuning import Replay, default_options, fisher_table, measure_free_running

    model = load_model(folder, device=device, dtype=torch.float32)
    samples = generate(model, ["red apple", "dog"], 3, decoder="transformers")
    with tempfile.TemporaryDirectory() as place:
        statistics = trace(model, samples, Path(place) / "trace").heads().select_dtypes("number").sum()
    options = default_options(model.shape.geometry, (16, 8, 4), 12, (1, 0))
    replay = Replay(model, samples)
    heads = torch.arange(model.shape.kv_heads)[None] + torch.arange(model.shape.layers)[:, None]
    policy = Policy.uniform(
        model.shape, window=3, heavy=(heads % 2) * 2, anchor=heads % 2, bits=torch.tensor([4, 8, 16])[heads % 3],
        prompt=(heads + 1) % 2, stride=2, prefix=replay.prefix,
    )  # fmt: skip
    return {
        "tokens": samples.tokens.tolist(),
        "statistics": statistics.tolist(),
        "table": fisher_table(replay, options, 2)["loss"].tolist(),
        "losses": replay.measure(policy).kl_by_image.tolist(),
        "own": measure_free_running(model, samples, policy).kl,
        "images": generate(model, ["blue car"], 5, policy=policy, decoder="transformers").tokens.tolist(),
    }


def main() -> None:
    """Make the device, work there, print what was found."""
    _setup_privateuseone_for_python_backend(NAME)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Generator, torch.inference_mode = Generator, Grads  # type: ignore[misc]
    torch.set_num_threads(1)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    with Everywhere():
        print(json.dumps(work(sys.argv[1], f"{NAME}:0")))


if __name__ == "__main__":
    main()
