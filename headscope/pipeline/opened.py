"""A run that is open: its model, its folder and its configuration, which every step works on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.models import ImageModel, lasting_name, load_model, source_of, warn_of_unknown_words
from headscope.pipeline.prompts import default_prompts, numbered, read_prompts, split
from headscope.pipeline.weights import check_weights
from headscope.policy import CacheSpec, Limit
from headscope.progress import Progress
from headscope.provenance import machine
from headscope.run_folder import RunFolder
from headscope.runtime import Sampling
from headscope.storage import read_json, write_json
from headscope.tuning import LimitConfig, PromptConfig, RunConfig, SearchConfig, config_from


@dataclass(frozen=True)
class Run:
    """What the steps of a run share.

    Attributes:
        model: the model, loaded.
        folder: where the steps find each other's files.
        config: every knob.
        progress: told what is being done.
    """

    model: ImageModel
    folder: RunFolder
    config: RunConfig
    progress: Progress | None = None

    @property
    def prefix(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.folder.read()["prefix"])

    @property
    def streams(self) -> int:
        """Rows of the batch that one image takes: two under guidance."""
        return _streams(self.model, self.config)

    def prompts(self) -> dict[str, list[str]]:
        """The prompts that the run was begun with: `calibration` and `unseen`."""
        file = self.folder.path / "prompts.json"
        prompts = read_json(file)
        lists = [prompts.get(name) for name in ("calibration", "unseen")] if isinstance(prompts, dict) else [None]
        if not all(isinstance(part, list) for part in lists):
            raise DataError(
                f"{file}: lacks the lists of calibration and unseen prompts that a run is begun with; start another run, in a "
                "folder of its own or with `overwrite`."
            )
        return prompts

    def spec(self) -> CacheSpec:
        """What the byte limit counts."""
        return _spec(self.model, self.config, self.prefix)

    def limit(self) -> Limit:
        """The byte limit in force.

        Raises:
            BudgetError: below the smallest possible, or above the full cache.
        """
        return self.config.limit.limit(self.spec())

    def under(self, limit: LimitConfig, search: SearchConfig | None = None) -> Run:
        """The same run with another limit, and another search where one is given."""
        return replace(self, config=self.config.replace(limit=limit, search=search or self.config.search))

    def told(self, progress: Progress) -> Run:
        """The same run, that tells another progress."""
        return replace(self, progress=progress)

    def keeping(self, keep: str) -> Run:
        """The same run with another share of the cache."""
        return self.under(self.config.limit.replace(keep=keep, memory=None))


@dataclass(frozen=True)
class Asked:
    """A run that is asked for; nothing of it is written yet.

    Attributes:
        model: loaded.
        config: every knob.
        calibration: prompts to trace and search on.
        unseen: prompts to judge by.
        prefix: tokens of the longest prompt.
    """

    model: ImageModel
    config: RunConfig
    calibration: list[str]
    unseen: list[str]
    prefix: int

    @property
    def streams(self) -> int:
        """Rows of the batch that one image takes."""
        return _streams(self.model, self.config)


def limit_facts(config: LimitConfig, limit: Limit) -> dict[str, Any]:
    """For run.json: the limit as it was asked for, and what it is in bytes."""
    return {**limit.to_dict(), "text": config.text, "plain_bytes": limit.spec.full_bytes}


def begin_run(
    config: RunConfig,
    out: str | Path,
    *,
    model: ImageModel | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    limited: bool = True,
    progress: Progress | None = None,
) -> Run:
    """Load the model and open the run folder: `asked_for` and `begin` in turn."""
    asked = asked_for(config, model=model, device=device)
    return begin(asked, out, resume=resume, overwrite=overwrite, limited=limited, progress=progress)


def asked_for(config: RunConfig, *, model: ImageModel | None = None, device: str = "auto") -> Asked:
    """Load the model and read the prompts.

    Args:
        config: every knob.
        model: that of the configuration, where it is loaded already.
        device: to load it on.

    Raises:
        HeadscopeError: no such model, weights that can't fit into memory, or prompts or a guidance that can't work.
    """
    texts = texts_of(config)
    if len(texts) < 2:  # said before a model is loaded
        split(texts, 1, 1)
    if model is None:
        check_weights(config.model, device, config.dtype)
        model = load_model(config.model, device=device, dtype=config.dtype)
    Sampling(guidance=config.guidance).of(model)
    texts = texts if getattr(model, "reads_prompts", True) else numbered(texts)
    calibration, unseen = split(texts, config.prompts.calibration, config.prompts.unseen)
    return Asked(model, config, calibration, unseen, model.tokenize([*calibration, *unseen]).ids.shape[1])


def begin(
    asked: Asked,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    limited: bool = True,
    progress: Progress | None = None,
) -> Run:
    """Open the run folder: run.json, prompts.json.

    Args:
        asked: model and prompts.
        out: the run folder.
        resume: go on with the run that the folder holds.
        overwrite: start anew, see `RunFolder.begin`.
        limited: whether limit and search belong to the run; one that only traces has none yet.
        progress: told what is being done.

    Raises:
        HeadscopeError: limits or a folder that can't work; nothing is generated before.
    """
    model, config, prefix = asked.model, asked.config, asked.prefix
    calibration, unseen = asked.calibration, asked.unseen
    folder, facts = RunFolder(Path(out)), {}
    if limited:
        facts["limit"] = limit_facts(config.limit, config.limit.limit(_spec(model, config, prefix)))
    kept = config.replace(prompts=PromptConfig(texts=(*calibration, *unseen), calibration=len(calibration), unseen=len(unseen)))
    left_out = {"model", "policy", "dtype", "batch_size"} | (set() if limited else {"limit", "search"})
    settings = kept.model_dump(mode="json", exclude=left_out)
    here = machine(model.device, model.dtype)
    folder.begin(model.shape, lasting_name(config.model), settings, here, resume=resume, overwrite=overwrite)
    warn_of_unknown_words(model, [*calibration, *unseen])
    folder.note(prefix=prefix, seed=config.seed, **facts)
    write_json(folder.path / "prompts.json", {"calibration": calibration, "unseen": unseen})
    return Run(model, folder, config, progress)


def open_run(path: str | Path, device: str = "auto", dtype: str | None = None, progress: Progress | None = None) -> Run:
    """Open a run folder with the model that it is about and the configuration that it was begun with.

    Args:
        path: the run folder.
        device: see `load_model`.
        dtype: of the model, such as "bfloat16", by default as `load_model` chooses.
        progress: told what is being done.

    Raises:
        DataError: no run folder, its model's folder is gone, its weights are others now, or it was begun by a version whose
            settings are not read any more.
        ModelError: the model cannot be loaded.
    """
    folder = RunFolder(Path(path))
    source = source_of(folder)
    settings = folder.read()["settings"]
    config = config_from({**settings, "model": source, "dtype": dtype}, str(folder.json))
    model = load_model(source, device=device, dtype=dtype)
    folder.check_model(model.shape)
    return Run(model, folder, config, progress)


def texts_of(config: RunConfig) -> list[str]:
    """The prompts that a configuration names, or those that its model brings.

    Raises:
        DataError: a file that is missing, unreadable or empty.
    """
    prompts = config.prompts
    if prompts.texts is not None:
        return list(prompts.texts)
    return default_prompts(config.model) if prompts.file is None else read_prompts(prompts.file)


def _streams(model: ImageModel, config: RunConfig) -> int:
    return 1 if (model.guidance if config.guidance is None else config.guidance) == 1.0 else 2


def _spec(model: ImageModel, config: RunConfig, prefix: int) -> CacheSpec:
    """The dtype and the streams that the model runs with here, unless the limit says others."""
    return config.limit.spec(model.shape, prefix, dtype=str(model.dtype), streams=_streams(model, config))
