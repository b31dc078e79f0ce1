"""A model of one's own by the file that makes it: `path/to/file.py:function`."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import torch

from headscope.errors import HeadscopeError, ModelError
from headscope.facts import said
from headscope.models.expected import kind_of
from headscope.models.protocol import ImageModel
from headscope.models.ranges import check_ranges

_NAME = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
# What an `ImageModel` has, see protocol.py.
MEMBERS = ("name", "shape", "vocabulary", "max_prefix", "decoder", "guidance", "temperature", "top_k", "dtype", "device",
           "tokenize", "token_strings", "embed_prefix", "embed_tokens", "forward", "logits", "to_images")  # fmt: skip


def is_own_file(name: str) -> bool:
    """Whether a name is a file and a function in it."""
    return _NAME.fullmatch(name) is not None


def lasting_file(name: str) -> str:
    """The same with the file's absolute path."""
    found = _NAME.fullmatch(name)
    assert found is not None
    return f"{Path(found['file']).absolute()}:{found['function']}"


def load_own(name: str, device: str, dtype: torch.dtype) -> ImageModel:
    """Call the function with a device ("cpu", "cuda:1") and a dtype.

    Args:
        name: `path/to/file.py:function`.
        device: for the function.
        dtype: for the function.

    Raises:
        ModelError: no such file or function, a file that can't be run, a function that fails, or one that gives no image model.
    """
    found = _NAME.fullmatch(name)
    assert found is not None
    path, function = Path(found["file"]), found["function"]
    if not path.is_file():
        raise ModelError(f"{name}: there is no file {path}.")
    make = getattr(_module(path, name), function, None)
    if not callable(make):
        raise ModelError(f"{name}: {path} has no function {function}.")
    try:
        model: Any = make(device, dtype)
    except HeadscopeError:
        raise
    except (Exception, SystemExit) as error:  # it is somebody else's
        raise ModelError(
            f"{name}: {function}({device!r}, {dtype}) failed with {type(error).__name__} ({said(error)})."
        ) from error
    check_members(model, name)
    return model


def check_members(model: object, name: str) -> None:
    """Refuse what is no `ImageModel`.

    Args:
        model: to look at.
        name: for the message.

    Raises:
        ModelError: names what it lacks, or a number that can't be.
    """
    lacking = [member for member in MEMBERS if not hasattr(model, member)]
    if lacking:
        raise ModelError(
            f"{name}: gave {kind_of(model)} without {', '.join(lacking[:4])}{' and more' if len(lacking) > 4 else ''}; "
            "expected an image model, such as headscope.models.RasterModel makes of a network."
        )
    check_ranges(model, name)


def _module(path: Path, name: str) -> Any:
    """The file as a module, run once a process."""
    key = f"headscope_own_{path.resolve()}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise ModelError(f"{name}: {path} cannot be run, {type(error).__name__} ({said(error)}).") from error
    return module
