"""Weights as they lie in a folder: torch's files or safetensors, whole or in parts, read one tensor at a time."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import nn

from headscope.errors import ModelError
from headscope.facts import OBJECT, check, said, shown
from headscope.models.loading import Placed, check_whole, other_shape, read_object, some
from headscope.words import size

# What is looked for, in this order: safetensors first, as transformers does.
_KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))
# Where the checkpoints of DDP, DeepSpeed and Lightning have the tensors.
_WRAPPINGS = ("model", "module", "state_dict")
# How a file of torch's begins that is no archive: the number that older versions mark their files with.
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

Shapes = dict[str, tuple[int, ...]]

_SLACK = 2**26  # numbers of parts that a checkpoint may lack, such as a small tower that looks at images


class Checkpoint:
    """The weights of a folder; none is in memory before it is asked for.

    Args:
        folder: where they lie.
        files: the files that hold them, where they are not those of `weight_files`.

    Attributes:
        folder: where they lie.
        files: the files that hold them.
        shapes: of every tensor, by the name that it has in its file.

    Raises:
        ModelError: no weights, a part that is missing, or a file that can't be read.
    """

    def __init__(self, folder: Path, files: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.files = list(files) or weight_files(folder)
        self.shapes: Shapes = {}
        for file in self.files:
            with _naming(file):
                self.shapes |= _opened(file)[0]

    def tensors(self, wanted: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of what is wanted, file by file; a tensor may be a view of its file, so copy what is kept."""
        for file in self.files:
            with _naming(file):
                shapes, read = _opened(file)
            for name in shapes:
                if name in wanted:
                    with _naming(file):
                        tensor = read(name)
                    yield name, tensor


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's weights.

    Raises:
        ModelError: there are none, or parts are missing.
    """
    for stem, kind in _KINDS:
        index, whole = folder / f"{stem}.{kind}.index.json", folder / f"{stem}.{kind}"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _present(folder, _indexed(index), f"which {index.name} names")
        if parts := _parts(folder, stem, kind):
            return _present(folder, parts, "of which other parts are there")
    raise ModelError(
        f"{folder}: has no weights (looked for model.safetensors and pytorch_model.bin, whole or in parts): copy the whole "
        "checkpoint."
    )


def check_room(folder: Path, files: Sequence[Path], make: Callable[[], nn.Module]) -> None:
    """Refuse a configuration of a far larger network than its weights are of, before memory is taken for that.

    Args:
        folder: of the model.
        files: its weights.
        make: the network by its configuration; called on the meta device.

    Raises:
        ModelError: says both.
    """
    with torch.device("meta"):
        asked = sum(parameter.numel() for parameter in make().parameters())
    held = sum(file.stat().st_size for file in files)
    if asked > 2 * held + _SLACK:  # a number has half a byte at least
        raise ModelError(
            f"{folder}: config.json is of a network of {asked:,} numbers, and the files of its weights hold {size(held)}: copy "
            "both from one checkpoint."
        )


def _indexed(index: Path) -> list[str]:
    """Names of the files that an index distributes tensors to."""
    found = check(read_object(index), {"weight_map": OBJECT}, str(index), ModelError, "copy the whole checkpoint")
    names = found["weight_map"].values()
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: names the file {shown(name)}, expected one beside it: copy the checkpoint again.")
    return sorted(set(names))


def _parts(folder: Path, stem: str, kind: str) -> list[str]:
    """Names of all parts of a checkpoint without an index, of which at least one is there."""
    numbered = re.compile(rf"{stem}-(\d{{1,5}})-of-(\d{{1,5}})\.{kind}")
    for path in sorted(folder.glob(f"{stem}-*-of-*.{kind}")):
        if found := numbered.fullmatch(path.name):
            width, count = len(found[1]), int(found[2])
            return [f"{stem}-{part:0{width}}-of-{found[2]}.{kind}" for part in range(1, count + 1)]
    return []


def _present(folder: Path, names: Sequence[str], why: str) -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(f"{folder}: lacks {some(missing, 'files') or 'weights'}, {why}: copy the whole checkpoint.")
    return [folder / name for name in names]


def _refuse_old(file: Path) -> None:
    """Refuse a file as torch wrote it before 1.6, of which no single tensor can be read."""
    with file.open("rb") as opened:
        old = opened.read(len(_OLD)) == _OLD
    if old:
        name = file.name
        raise ModelError(
            f"{file}: is in the format of torch before 1.6, of which headscope can't read one tensor at a time: write it anew "
            f"in its folder with python -c \"import torch; torch.save(torch.load('{name}', weights_only=True), '{name}')\"."
        )


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """What goes wrong inside becomes a sentence that names the file."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a damaged file may fail in any way, in classes of two libraries
        raise ModelError(f"{file}: cannot be read ({said(error)}): copy the file again.") from error


def _opened(file: Path) -> tuple[Shapes, Callable[[str], torch.Tensor]]:
    """Shapes by name, and how to read one tensor. Nothing of a file of torch's is run: it may hold tensors only, and one
    that ends in .pt what a training leaves beside them."""
    if file.suffix == ".safetensors":
        opened: Any = safe_open(file, framework="pt")
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}, opened.get_tensor  # noqa: SIM118
    _refuse_old(file)
    if not is_zipfile(file):
        raise ValueError("it is no archive such as torch.save writes")
    with torch.serialization.safe_globals([argparse.Namespace]):  # the settings of a training, which are plain values
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if file.suffix == ".pt":
        state = _unwrapped(state)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("it holds other things than named tensors")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__


def _unwrapped(state: Any) -> Any:
    """The named tensors of a training's checkpoint, which has them beside the optimiser's; others are as they were."""
    inside = [state[name] for name in _WRAPPINGS if isinstance(state, dict) and isinstance(state.get(name), dict)]
    return inside[0] if inside else state


def fill(
    network: nn.Module,
    checkpoint: Checkpoint,
    stored: Callable[[str], str],
    unused: tuple[str, ...],
    device: str,
    dtype: torch.dtype,
    settings: str = "config.json",
) -> Placed:
    """Give a network that was made on the meta device its parameters, each read, converted and placed alone.

    Args:
        network: all of whose parameters are to be filled.
        checkpoint: what they are read from.
        stored: of a parameter's name to the name that the checkpoint has for it.
        unused: beginnings of the names of tensors that the network has no need of.
        device: where the parameters are placed.
        dtype: of the parameters.
        settings: where the sizes come from, for the sentence.

    Returns:
        How many tensors were placed, and left aside.

    Raises:
        ModelError: a tensor is missing, has another shape, or fits nothing.
    """
    parameters = dict(network.named_parameters())
    places = {stored(name): name for name in parameters}
    given = {name for name in checkpoint.shapes if not name.startswith(unused)}
    found = {"missing_keys": places.keys() - given, "unexpected_keys": given - places.keys()}
    check_whole(checkpoint.folder, found, ("",))
    for name, place in sorted(places.items()):
        here, expected = checkpoint.shapes[name], tuple(parameters[place].shape)
        if here != expected:
            raise other_shape(checkpoint.folder, name, here, expected, settings)
    for name, tensor in checkpoint.tensors(places):
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{checkpoint.folder}: {name} is of {kind}, expected floating numbers: copy weights that were not quantised."
            )
        owner, _, leaf = places[name].rpartition(".")
        setattr(network.get_submodule(owner), leaf, nn.Parameter(tensor.to(device, dtype, copy=True)))
    return Placed(len(places), len(checkpoint.shapes) - len(given))
