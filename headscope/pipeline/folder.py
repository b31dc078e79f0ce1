"""The run folder: where each step finds the files of the step before, and what says which run it is."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from headscope.errors import DataError
from headscope.models.protocol import ImageModel
from headscope.models.registry import lasting_name, names_a_folder
from headscope.pipeline.overwriting import clear_run
from headscope.storage import read_json, write_json

PACKAGES = ("torch", "transformers", "optuna", "scikit-learn", "pandas", "numpy", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its `run.json`; they are absolute, so that changing the working folder later changes nothing."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).absolute())

    @property
    def trace(self) -> Path:
        """Folder of the trace dataset."""
        return self.path / "trace"

    @property
    def samples(self) -> Path:
        """The calibration pictures as tokens."""
        return self.path / "calibration.parquet"

    @property
    def unseen(self) -> Path:
        """Pictures of prompts that neither trace nor search saw, drawn with the full cache."""
        return self.path / "unseen.parquet"

    @property
    def heads(self) -> Path:
        """The head classes."""
        return self.path / "heads.safetensors"

    @property
    def stability(self) -> Path:
        """How far two looks at the heads agree."""
        return self.path / "stability.csv"

    @property
    def sensitivity(self) -> Path:
        """Losses of single heads."""
        return self.path / "sensitivity.parquet"

    @property
    def needs(self) -> Path:
        """What each head needs, from those losses."""
        return self.path / "needs.csv"

    @property
    def search(self) -> Path:
        """Folder of the search."""
        return self.path / "search"

    def table(self, pictures: int) -> Path:
        """The sensitivity table of the search, measured on so many pictures; it belongs to no limit."""
        return self.search / f"sensitivity-{pictures}.parquet"

    @property
    def policy(self) -> Path:
        """The searched policy."""
        return self.path / "policy.safetensors"

    @property
    def pictures(self) -> Path:
        """Folder of drawn pictures."""
        return self.path / "pictures"

    @property
    def json(self) -> Path:
        """What the run is: model, settings, versions, machine, seconds."""
        return self.path / "run.json"

    def read(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            DataError: there is none, so this is no run folder.
        """
        if not self.json.is_file():
            raise DataError(f"{self.path}: no run.json here, so this is no run folder; make one with `headscope trace`.")
        content = read_json(self.json)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise DataError(f"{self.json}: not a run.json of headscope; start in another folder.")
        return content

    def source(self) -> str:
        """What `load_model` opens the run's model by. A model that was a folder is never looked for on a hub.

        Raises:
            DataError: the folder is not there, or run.json, of an older headscope, names it by a relative path that leads
                nowhere, or to several folders.
        """
        model = self.read()["model"]
        source = str(model.get("source") or model.get("name"))
        if not names_a_folder(source, str(model.get("name"))) or Path(source).is_dir():
            return lasting_name(source)
        if Path(source).is_absolute():
            raise DataError(
                f"{self.json}: the run was begun with the model folder {source}, which is not there; put it back, or write its "
                'place as "source" of the model into this file.'
            )
        above = [*self.path.parents, *self.path.resolve().parents]
        found = {folder.resolve() for folder in (parent / source for parent in above) if (folder / "config.json").is_file()}
        if len(found) == 1:
            return str(found.pop())
        where = " and ".join(map(str, sorted(found))) or "neither here nor above the run"
        raise DataError(
            f"{self.json}: the run was begun with the model folder {source}, found {where}; give the command from the folder "
            'that it was begun in, or write the absolute path as "source" of the model into this file.'
        )

    def note(self, **facts: Any) -> dict[str, Any]:
        """Merge facts into run.json (dictionaries one level deep) and write it whole."""
        content = self.read()
        for name, value in facts.items():
            before = content.get(name)
            content[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        write_json(self.json, content)
        return content

    def begin(self, model: ImageModel, source: str, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Make the folder a run of `model`, or go on with the run that it holds.

        Args:
            source: what `load_model` took; a folder is noted by its absolute path.
            overwrite: remove what headscope wrote there before; other files stay.

        Raises:
            DataError: it holds a run and neither `resume` nor `overwrite` was asked for, or a run of something else; or
                other files and no run; or it is a folder that is never cleared.
        """
        cleared = overwrite and self.json.is_file()
        if cleared:
            clear_run(self.path)
        if self.json.is_file():
            found = self.read()
            self.check_model(model)
            if not resume:
                raise DataError(
                    f"{self.path}: holds a run of {found['model']['name']} already; continue it with --resume, start anew with "
                    "--overwrite, or choose another folder with --out."
                )
            for name, value in settings.items():
                before = found["settings"].get(name, value)
                if before not in (None, value):  # None: the steps so far did not need it
                    raise DataError(
                        f"{self.path}: was begun with {name} {_brief(before)}, now it is {_brief(value)}; use the same, or "
                        "another folder with --out."
                    )
            self.note(settings=settings)
            return
        if not cleared and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise DataError(f"{self.path}: exists and is no run folder; choose another one with --out.")
        write_json(
            self.json,
            {
                "headscope": version_of("headscope"),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "model": {**model.shape.to_dict(), "source": lasting_name(source)},
                "settings": settings,
                "versions": {name: version_of(name) for name in PACKAGES},
                "machine": machine(model),
                "steps": {},
            },
        )

    def check_model(self, model: ImageModel) -> None:
        """Refuse a run folder of another model.

        Raises:
            DataError: the weights differ from those the run was begun with.
        """
        found = self.read()["model"]
        if found["weights"] != model.shape.weights:
            raise DataError(
                f"{self.path}: is a run of {found['name']} (weights {found['weights'][:12]}), not of {model.name} (weights "
                f"{model.shape.weights[:12]}); choose another folder with --out."
            )

    def done(self, step: str) -> bool:
        """Whether a step has been finished."""
        return step in self.read()["steps"]


def machine(model: ImageModel) -> dict[str, Any]:
    """What figures of time and memory belong to."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or platform.machine())
    return {
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device.type,
        "processor": name,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
