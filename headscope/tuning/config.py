"""Every knob of a search and of a run, with its default, in one place: command line, TOML and Python build these objects.

`config_file` reads them from TOML. An unknown key, a wrong unit or a budget that can't be is refused in one sentence that names
it.

Long, because every knob stands here once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headscope.errors import BudgetError, DataError

if TYPE_CHECKING:
    from headscope.policy import CacheSpec, Limit, ModelShape

# Proposers of a study, see `headscope.tuning.propose.samplers`.
SAMPLERS = ("tpe", "gp", "cma-es", "nsga-ii", "random")
# Sensitivity tables, see `headscope.tuning.measure.table`.
TABLES = ("auto", "heads", "fisher", "groups", "coverage")
# The prompts of a policy's heads that the knob offers: 1 is the whole of it, 0 its first and last token.
PROMPTS = {"by head": (1, 0), "whole": (1,)}
# Kinds of scores that heads may have: attention received and `expected`, or the former alone.
SCORES = ("by head", "received")
KEEP = "20%"
BUCKETS = 3


def _number_as_text(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else str(value) if type(value) is int else value


def _reads(parse: str, named: str = "") -> AfterValidator:
    """What a function of `headscope.policy` can read; it is loaded late, with torch, which `--help` does without."""

    def read(text: str) -> str:
        try:
            found = getattr(import_module("headscope.policy"), parse)(text)
        except BudgetError as error:
            raise ValueError(str(error).removeprefix(named)) from None
        return found if isinstance(found, str) else text

    return AfterValidator(read)


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    def known(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text}: unknown; expected one of {', '.join(names)}")
        return text

    return AfterValidator(known)


def _file_name(text: str) -> str:
    if not text or text.startswith(".") or not text.isprintable() or set(text) & set("/\\"):
        raise ValueError("expected the bare name of a file, which is written into RUN/policies/")
    return text


def _joined(value: object) -> object:
    """`[16, 8]`, as TOML files may say it, as `16,8`."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else _number_as_text(value)


def _bits(text: str) -> str:
    found = {part.strip() for part in text.split(",")}
    if not found <= {"16", "8", "4"}:
        raise ValueError(f"{text or 'nothing'}: expected one of 16, 8 and 4, or several with commas")
    return ",".join(sorted(found, key=int, reverse=True))


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Dtype = Annotated[str, _reads("dtype_name")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Told(type(BaseModel)):  # type: ignore[misc]
    """What is wrong with a value is one sentence, a `DataError`."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        try:
            return super().__call__(*values, **named)
        except ValidationError as error:
            raise DataError(_said(cls, error)) from None


if TYPE_CHECKING:
    _Base = BaseModel  # checkers take a metaclass of a metaclass that they cannot see for a conflict
else:

    class _Base(BaseModel, metaclass=_Told):
        """Of all configurations."""


class _Config(_Base):
    model_config = ConfigDict(extra="forbid", strict=True)

    def __setattr__(self, name: str, value: object) -> None:
        raise DataError(f"{name}: a configuration does not change; make another with replace({name}=...).")

    def __hash__(self) -> int:
        return hash(repr(self))

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class LimitConfig(_Config):
    """The byte limit, and what it counts.

    Attributes:
        keep: share of the plain cache, such as "20%", "0.2" or 0.2; 20 % where neither this nor `memory` is given.
        memory: size in bytes, such as "12MiB", of `batch` images.
        batch: images generated together that `memory` is for.
        dtype: of the cache that is counted; by default that of the run for `memory`, and two bytes a number for `keep`.
        streams: rows of the batch an image takes, by default 2 under guidance, else 1.
        count_prefix: whether the prefix counts.
    """

    keep: Annotated[str, BeforeValidator(_number_as_text), _reads("parse_share", "keep ")] | None = None
    memory: Annotated[str, BeforeValidator(_number_as_text), _reads("parse_size", "memory ")] | None = None
    batch: int = Field(default=1, ge=1)
    dtype: Dtype | None = None
    streams: Literal[1, 2] | None = None
    count_prefix: bool = True

    @model_validator(mode="after")
    def _one(self) -> LimitConfig:
        if self.keep is not None and self.memory is not None:
            raise ValueError("give keep or memory, not both")
        if self.memory is None and self.dtype in ("float32", "float64"):
            raise ValueError(f"a share is counted in two bytes a number, not in {self.dtype}; leave dtype out, or give memory")
        if self.keep is None and self.memory is None:
            object.__setattr__(self, "keep", KEEP)
        return self

    @property
    def text(self) -> str:
        """As it was asked for."""
        return self.memory or self.keep or KEEP

    def spec(self, shape: ModelShape, prefix: int, *, dtype: str, streams: int) -> CacheSpec:
        """What a cache is counted for.

        Args:
            shape: the model.
            prefix: tokens before the image.
            dtype: that the model runs in, where the limit says no other.
            streams: that an image takes, where the limit says no other number.
        """
        from headscope.policy import CacheSpec

        rows = self.batch, self.streams or streams
        spec = CacheSpec(shape, prefix, *rows, self.dtype or dtype, self.count_prefix)
        return spec if self.memory is not None else spec.in_two_bytes()

    def limit(self, spec: CacheSpec) -> Limit:
        """The share or the size, counted for `spec`.

        Raises:
            BudgetError: below the smallest possible, or above the full cache.
        """
        from headscope.policy import Limit

        return Limit.of_share(self.text, spec) if self.memory is None else Limit.of_memory(self.memory, spec)


class PromptConfig(_Config):
    """Prompts, and how many of them the search sees and how many judge it.

    Attributes:
        file: text, JSON lines or a folder of text files, see `headscope.prompt_files`.
        texts: the prompts themselves; without file and texts, those that the model brings.
        calibration: prompts to trace and search on, every other one.
        unseen: prompts to judge by.
    """

    file: str | None = None
    texts: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] | None = None
    calibration: int = Field(default=16, ge=1)
    unseen: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _one(self) -> PromptConfig:
        if self.file is not None and self.texts is not None:
            raise ValueError("give file or texts, not both")
        return self


class SearchConfig(_Config):
    """The search.

    Attributes:
        trials: proposals of the study, on top of presets and the solver's answers.
        seed: of the proposals.
        sampler: what proposes: tpe, gp, cma-es, nsga-ii or random.
        prune: give a policy up as soon as it is worse than the best one, image by image.
        patience: proposals of a phase without a gain that end it; 0 never.
        buckets: most kinds of heads in a layer.
        strides: tokens between two choices of heavy tokens to choose from, by default a quarter, half, one and two rows.
        images: calibration images that a trial replays, by default all.
        table: sensitivity table to begin with: of heads, of heads by gradients (fisher), of groups (a class in a layer), of
            the trace's coverage, or auto by the model's size.
        table_images: calibration images that the table is measured on.
        options: of the table, the most telling first; by default all.
        bits: of kept numbers, of 16, 8 and 4, that a head may have, such as "16,8,4"; presets are compared at each of them too.
        prompt: "by head" lets heads keep just the prompt's first and last token (at 7 % a third less is lost); or "whole".
        score: "by head" lets heads choose by what tokens receive against what is usual (`expected`); or "received" alone.
        quick: a dry run: no table, one variant a preset.
    """

    trials: int = Field(default=40, ge=0)
    seed: Seed = 0
    sampler: Annotated[str, _one_of(SAMPLERS)] = "tpe"
    prune: bool = True
    patience: int = Field(default=30, ge=0)
    buckets: int = Field(default=BUCKETS, ge=1)
    strides: Annotated[tuple[int, ...], BeforeValidator(_as_tuple), Field(min_length=1)] | None = None
    images: int | None = Field(default=None, ge=1)
    table: Annotated[str, _one_of(TABLES)] = "auto"
    table_images: int = Field(default=8, ge=1)
    options: int | None = Field(default=None, ge=4)
    bits: Annotated[str, BeforeValidator(_joined), AfterValidator(_bits)] = "16,8,4"
    prompt: Annotated[str, _one_of(tuple(PROMPTS))] = "by head"
    score: Annotated[str, _one_of(SCORES)] = "by head"
    quick: bool = False

    @property
    def each_bits(self) -> tuple[int, ...]:
        """`bits` as numbers, the largest first."""
        return tuple(int(part) for part in self.bits.split(","))

    @property
    def each_prompt(self) -> tuple[int, ...]:
        """`prompt` as numbers of a policy."""
        return PROMPTS[self.prompt]

    @property
    def compares(self) -> bool:
        """Whether heads may choose by the score `expected`; a dry run has no table that tells, nor has the trace alone."""
        return self.score == SCORES[0] and not self.quick and self.table != "coverage"


class RunConfig(_Config):
    """A run: a model, its prompts, and a search under a limit.

    Attributes:
        model: what `load_model` takes.
        policy: file name of the policy in RUN/policies/, by default RUN/policy.safetensors.
        dtype: of the model, by default float32 on a CPU, else bfloat16.
        guidance: scale of classifier-free guidance, 1 for none, by default the model's own.
        seed: of images and head classes.
        batch_size: images generated together.
        limit: see `LimitConfig`.
        prompts: see `PromptConfig`.
        search: see `SearchConfig`.
    """

    model: str
    policy: Annotated[str, AfterValidator(_file_name)] | None = None
    dtype: Dtype | None = None
    guidance: float | None = Field(default=None, ge=0)
    seed: Seed = 0
    batch_size: int = Field(default=16, ge=1)
    limit: LimitConfig = LimitConfig()
    prompts: PromptConfig = PromptConfig()
    search: SearchConfig = SearchConfig()


def config_from(content: object, where: str) -> RunConfig:
    """A run's configuration from a table of names and values.

    Args:
        content: of a TOML file, or of run.json.
        where: for messages.

    Raises:
        DataError: a key that is unknown, missing or wrong; the sentence names it.
    """
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{where}: {_said(RunConfig, error)}") from None


def _said(config: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong: which key, what was found, what was expected."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
    if first["type"] == "extra_forbidden":
        table = key.rpartition(".")[0]
        known = config.model_fields
        if table in known:
            known = known[table].annotation.model_fields  # type: ignore[union-attr]
        return f"{key}: unknown key; expected one of {', '.join(known)}."
    if first["type"] == "missing":
        return f"{key}: is missing; add it."
    text, found = first["msg"].removeprefix("Value error, ").rstrip("."), first.get("input")
    shown = "" if isinstance(found, dict) or text.startswith((str(found), f"dtype {found}")) else f", found {found!r:.80}"
    sentence = f"{text[0].lower() + text[1:]}{shown}."
    return f"{key}: {sentence}" if key else sentence
