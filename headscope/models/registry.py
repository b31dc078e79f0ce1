"""From what the user typed (a bundled name, a folder, a hub id) to an `ImageModel`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch

from headscope.errors import BudgetError, DataError, ModelError
from headscope.facts import clipped
from headscope.models.card import is_raster_folder
from headscope.models.causal_lm import load_smollm2
from headscope.models.expected import kind_of
from headscope.models.families import family_of
from headscope.models.hub import HUB_ID, from_hub
from headscope.models.model_name import join_name, split_name
from headscope.models.own_file import check_members, is_own_file, lasting_file, load_own
from headscope.models.protocol import ImageModel
from headscope.plugins import plugged
from headscope.policy import dtype_name
from headscope.run_folder import RunFolder

_BUNDLED = {
    "stickers": "bundled: generates 64 x 64 stickers from words, runs offline on a laptop",
    "stickers-scenes": "bundled: generates 96 x 96 scenes of one to four stickers, 24 x 24 tokens, still learning",
    "stickers-classes": "bundled: a small LlamaGen, generates 64 x 64 stickers of 48 classes, 16 x 16 tokens",
}
_TEXT = {"smollm2": 'extra "text": SmolLM2-135M-Instruct, continues a prompt by 256 tokens of text, runs offline'}
_HUB = {
    "deepseek-community/Janus-Pro-1B": "hub: Janus-Pro-1B in transformers' format",
    "deepseek-community/Janus-Pro-7B": "hub: Janus-Pro-7B in transformers' format",
    "deepseek-ai/Janus-Pro-1B": "hub: Janus-Pro-1B in DeepSeek's format",
    "deepseek-ai/Janus-Pro-7B": "hub: Janus-Pro-7B in DeepSeek's format",
}
# How to load models of other packages and of the user, by name.
Load = Callable[[str, torch.dtype], ImageModel]
_registered: dict[str, Load] = {}


def known_models() -> list[tuple[str, str]]:
    """(name, description) of the models that can be named; any folder of the same families can be named too."""
    folder = (
        "FOLDER",
        "a folder with a Janus (transformers' or DeepSeek's format), a LlamaGen, a text model, or with headscope.toml your own",
    )
    own = ("FILE.py:FUNCTION", "a function of yours that gives an image model for a device and a dtype")
    others = [(name, "registered") for name in sorted(_others())]
    return [*_BUNDLED.items(), *_TEXT.items(), *others, *_HUB.items(), own, folder]


def register_model(name: str, load: Load) -> None:
    """Make a model of one's own known by a name, to `load_model` and to every verb in this process.

    A package registers its models for every process by entry points of the group `headscope.models`: the entry point's name,
    and the function `load`.

    Args:
        name: letters, digits, `.`, `_` and `-`.
        load: of a device ("cpu", "cuda:1") and a dtype to an `ImageModel`, ready to generate.

    Raises:
        ModelError: the name is taken, or no name.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name in dict(known_models()):
        raise ModelError(f"model {name!r}: expected a name of its own, letters, digits, '.', '_' and '-'; {_known()}.")
    _registered[name] = load


def _others() -> dict[str, Load]:
    """What was registered, before what packages bring."""
    return {**plugged("models"), **_registered}


def load_model(name: str | os.PathLike[str], device: str = "auto", dtype: torch.dtype | str | None = None) -> ImageModel:
    """Load a model ready to generate.

    Args:
        name: `stickers`, `smollm2`, a folder, `path/to/file.py:function` of one's own, or a hub id such as
            `deepseek-community/Janus-Pro-1B` (the only case that uses a network); a LlamaGen's folder may have settings behind
            it, `FOLDER?features=FILE&fold_prefix=false`.
        device: `auto` (CUDA where there is one, else the CPU), or as torch names one: cpu, cuda:1.
        dtype: of the weights, float32 on a CPU and bfloat16 elsewhere unless given.

    Raises:
        ModelError: unknown name, a folder or hub id that does not hold a model of a known family, or a device that can't be
            used here.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ModelError(f"load_model: expected a name, found {kind_of(name)}, which is loaded already, or is no model at all.")
    name, device = os.fspath(name), resolve_device(device)
    kind = resolve_dtype(dtype, device)
    plain, settings = split_name(name)
    if settings:
        return _with_settings(plain, settings, device, kind)
    folder = bundled_folder(name)
    if folder is not None:
        if not any(folder.glob("model*.safetensors")):
            raise ModelError(f"{name}: its files are missing from this installation; install headscope again.")
        return family_of(folder).load(folder, name, device, kind)
    if name in _TEXT:
        return load_smollm2(name, device, kind)
    if name in _others():
        model = _others()[name](device, kind)
        check_members(model, name)
        return model
    if is_own_file(name):
        return load_own(name, device, kind)
    if Path(name).is_dir():
        return family_of(name).load(name, Path(name).resolve().name, device, kind)
    if HUB_ID.fullmatch(name):
        return from_hub(name, device, kind, _known(), known=name in _HUB)
    own = f"; a function of yours is named too, such as {name.partition('.py')[0]}.py:load" if ".py" in name else ""
    raise ModelError(f"{name}: neither a known model nor a folder{own}; {_known()}, or FILE.py:FUNCTION.")


def _with_settings(plain: str, settings: dict[str, str], device: str, dtype: torch.dtype) -> ImageModel:
    """Load a folder of a family that takes settings.

    Raises:
        ModelError: a setting that it does not take.
    """
    family = family_of(plain) if Path(plain).is_dir() else None
    known = () if family is None else family.settings
    if unknown := [key for key in settings if key not in known]:
        raise ModelError(
            f"{plain}: takes no setting {clipped(ascii(unknown[0])[1:-1])} ({', '.join(known) or 'none at all'}); a folder "
            "with a LlamaGen takes features and fold_prefix."
        )
    assert family is not None
    return family.load(plain, Path(plain).resolve().name, device, dtype, **settings)


def _known() -> str:
    return f"known models are {', '.join(known for known, _ in known_models()[:-2])}"


def lasting_name(name: str) -> str:
    """What `load_model(name)` means, whichever the working folder is later: a folder becomes its absolute path."""
    plain, settings = split_name(name)
    if settings:
        return join_name(lasting_name(plain), settings)
    if is_own_file(name):
        return lasting_file(name)
    if _is_named(name) or not Path(name).is_dir():
        return name
    path = Path(name).absolute()
    return str(path.resolve() if os.pardir in path.parts else path)


def source_of(run: RunFolder) -> str:
    """What `load_model` opens the model of a run by. A model that was a folder is never looked for on a hub.

    Raises:
        DataError: the folder is not there, or run.json, of an older headscope, names it by a relative path that leads
            nowhere, or to several folders.
    """
    model = run.read()["model"]
    source, settings = split_name(str(model.get("source") or model.get("name")))
    return join_name(_plain_source(run, source, str(model.get("name"))), settings)


def _plain_source(run: RunFolder, source: str, name: str) -> str:
    """`source_of` without settings, for a model that is called `name`."""
    if not names_a_folder(source, name) or Path(source).is_dir():
        return lasting_name(source)
    if Path(source).is_absolute():
        raise DataError(
            f"{run.json}: the run was begun with the model folder {source}, which is not there; put it back, or write its "
            'place as "source" of the model into this file.'
        )
    above = [*run.path.parents, *run.path.resolve().parents]
    found = {folder.resolve() for folder in (parent / source for parent in above) if (folder / "config.json").is_file()}
    if len(found) == 1:
        return str(found.pop())
    where = " and ".join(map(str, sorted(found))) or "neither here nor above the run"
    raise DataError(
        f"{run.json}: the run was begun with the model folder {source}, found {where}; give the command from the folder "
        'that it was begun in, or write the absolute path as "source" of the model into this file.'
    )


def names_a_folder(source: str, model: str) -> bool:
    """Whether a model that was loaded by the name `source`, and is called `model` since, came from a folder.

    A hub's model is called by its id, a folder's by the folder's own name.
    """
    if _is_named(source) or is_own_file(source):
        return False
    return not (HUB_ID.fullmatch(source) and source == model)


def _is_named(name: str) -> bool:
    """Whether it is the name of a model here, and neither a folder nor a hub's."""
    return name in _BUNDLED or name in _TEXT or name in _others()


def is_own(name: str) -> bool:
    """Whether a model is a user's own: registered, made by a function in a file, or a folder with headscope.toml."""
    return name in _others() or is_own_file(name) or is_raster_folder(Path(name))


def bundled_folder(name: str) -> Path | None:
    """Where a bundled model lies; None for a name that is not one."""
    return Path(str(files("headscope") / "bundled" / name)) if name in _BUNDLED else None


def writes_text(name: str) -> bool:
    """Whether a name or a folder is a text model's; what holds no model is none."""
    if name in _TEXT:
        return True
    try:
        return Path(name).is_dir() and family_of(name).writes_text
    except ModelError:
        return False


def resolve_dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype:
    """The dtype that a name stands for: without one float32 on a CPU, else bfloat16.

    Args:
        dtype: of the weights.
        device: that they are for.

    Raises:
        ModelError: no such dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    try:
        return getattr(torch, dtype_name(dtype))
    except BudgetError:
        raise ModelError(f"dtype {dtype}: unknown; known are float32, bfloat16, float16, or fp32, bf16, fp16.") from None


def resolve_device(device: str) -> str:
    """The device that a name stands for, as torch names it.

    Args:
        device: `auto`, which is `cuda` where torch can use one and else `cpu`; anything else stays as it is.

    Raises:
        ModelError: torch cannot use it here.
    """
    found = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device}: not usable here ({reason}); name another one, such as cpu.") from None
    return found
