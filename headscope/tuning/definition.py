"""Study definitions: one TOML file says which model, limit, prompts and search make a policy.

    model = "stickers"
    policy = "stickers-20.safetensors"     # what to write, into RUN/policies/

    [limit]
    keep = "20%"                           # or: memory = "12MiB", batch = 16

    [search]
    trials = 60

Everything else has the default of the class below; an unknown key, a wrong unit or a budget that can't be is refused in
one sentence that names the key. The prompts' file and a model that is a folder count from the folder of the TOML file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from headscope.errors import BudgetError, DataError
from headscope.models.registry import known_models
from headscope.policy.footprint import dtype_name, parse_share, parse_size
from headscope.storage import read_text
from headscope.tuning.propose.samplers import SAMPLERS


def _share(text: str) -> str:
    try:
        parse_share(text)
    except BudgetError as error:
        raise ValueError(str(error).removeprefix("keep ")) from None
    return text


def _size(text: str) -> str:
    try:
        parse_size(text)
    except BudgetError as error:
        raise ValueError(str(error).removeprefix("memory ")) from None
    return text


def _dtype(text: str) -> str:
    try:
        dtype_name(text)
    except BudgetError as error:
        raise ValueError(str(error)) from None
    return text


def _sampler(text: str) -> str:
    if text not in SAMPLERS:
        raise ValueError(f"{text}: unknown; expected one of {', '.join(SAMPLERS)}")
    return text


def _file_name(text: str) -> str:
    if not text or text.startswith(".") or not text.isprintable() or set(text) & set("/\\"):
        raise ValueError("expected the bare name of a file, which is written into RUN/policies/")
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LimitPart(_Strict):
    """The byte limit: `keep` (a share of the plain cache) or `memory` for `batch` images."""

    keep: Annotated[str, AfterValidator(_share)] | None = None
    memory: Annotated[str, AfterValidator(_size)] | None = None
    batch: int = Field(1, ge=1)
    dtype: Annotated[str, AfterValidator(_dtype)] | None = None
    guidance: bool | None = None
    of: Literal["all", "image"] = "all"

    @model_validator(mode="after")
    def _one(self) -> LimitPart:
        if (self.keep is None) == (self.memory is None):
            raise ValueError("give keep or memory, one of the two")
        return self


class PromptsPart(_Strict):
    """Prompts: a `file` (the model's own without one), and how many calibrate and how many judge."""

    file: str | None = None
    calibration: int = Field(32, ge=1)
    unseen: int = Field(32, ge=1)


class SearchPart(_Strict):
    """The search; see `headscope.tuning.search`."""

    trials: int = Field(60, ge=0)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    sampler: Annotated[str, AfterValidator(_sampler)] = "tpe"
    prune: bool = True
    buckets: int = Field(3, ge=1)
    strides: tuple[int, ...] | None = Field(None, min_length=1)
    table: Literal["auto", "heads", "groups", "coverage"] = "auto"
    table_images: int = Field(8, ge=1)


class Definition(_Strict):
    """A study definition."""

    model: str
    policy: Annotated[str, AfterValidator(_file_name)]
    dtype: Annotated[str, AfterValidator(_dtype)] | None = None
    limit: LimitPart
    prompts: PromptsPart = PromptsPart()  # type: ignore[call-arg]
    search: SearchPart = SearchPart()  # type: ignore[call-arg]


def read_definition(path: str | Path) -> Definition:
    """Read and check a study definition.

    Returns:
        It, with the prompts' file and a model's folder as absolute paths, whatever the working folder is.

    Raises:
        DataError: no such file, not TOML, or a key that is unknown, missing or wrong; the sentence names it.
    """
    try:
        content = tomllib.loads(read_text(path, "study definition"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a TOML file ({error}).") from None
    for table in ("search",):  # TOML has lists, and a strict tuple is none
        part = content.get(table)
        if isinstance(part, dict) and isinstance(part.get("strides"), list):
            part["strides"] = tuple(part["strides"])
    try:
        return _placed(Definition.model_validate(content), path)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
        raise DataError(f"{path}: {_said(key, first['type'], first['msg'], first.get('input'))}") from None


def _placed(definition: Definition, path: str | Path) -> Definition:
    """Paths in a definition count from the file that they stand in."""
    folder = Path(path).absolute().parent
    prompts = definition.prompts
    if prompts.file is not None:
        prompts = prompts.model_copy(update={"file": str(folder / prompts.file)})
    return definition.model_copy(update={"prompts": prompts, "model": _model(definition.model, folder, path)})


def _model(name: str, folder: Path, path: str | Path) -> str:
    if "/" not in name and name in (known for known, _ in known_models()[:-1]):
        return name
    if (folder / name).is_dir():
        return str(folder / name)
    if not Path(name).is_absolute() and Path(name).is_dir():
        raise DataError(f"{path}: model: {name} is no folder beside this file, and a path in it counts from {folder}.")
    return name


def _said(key: str, kind: str, message: str, found: object) -> str:
    if kind == "extra_forbidden":
        table = key.rpartition(".")[0]
        known = Definition.model_fields
        if table in known:
            known = known[table].annotation.model_fields  # type: ignore[union-attr]
        return f"{key}: unknown key; expected one of {', '.join(known)}."
    if kind == "missing":
        return f"{key}: is missing; add it."
    text = message.removeprefix("Value error, ").rstrip(".")
    shown = "" if isinstance(found, dict) or str(found) in text else f", found {found!r:.80}"
    return f"{key}: {text[0].lower() + text[1:]}{shown}."
