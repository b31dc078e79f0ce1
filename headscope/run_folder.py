"""The run folder: where each step finds the files of the step before, and what says which run it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headscope.errors import DataError
from headscope.facts import OBJECT, TEXT, check, clipped, optional, plain, record, shown, whole
from headscope.overwriting import clear_run
from headscope.policy import ModelShape
from headscope.provenance import version_of, versions
from headscope.storage import read_json, write_json

# What others read of a run.json.
_FACTS = {
    "model": record({"name": TEXT, "weights": TEXT, "source": optional(TEXT)}),
    "settings": OBJECT,
    "steps": OBJECT,
    "prefix": optional(whole()),
    "seed": optional(whole(-(2**63), 2**63 - 1)),
    "limit": optional(OBJECT),
}


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
        """The calibration images as tokens."""
        return self.path / "calibration.parquet"

    @property
    def unseen(self) -> Path:
        """Images of prompts that neither trace nor search saw, generated with the full cache."""
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
    def ablation(self) -> Path:
        """What each head needs, from those losses."""
        return self.path / "ablation.csv"

    @property
    def search(self) -> Path:
        """Folder of the search."""
        return self.path / "search"

    def table(self, images: int) -> Path:
        """The sensitivity table of the search, measured on so many images; it belongs to no limit."""
        return self.search / f"sensitivity-{images}.parquet"

    @property
    def policy(self) -> Path:
        """The searched policy."""
        return self.path / "policy.safetensors"

    @property
    def images(self) -> Path:
        """Folder of generated images."""
        return self.path / "images"

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
        found = check(read_json(self.json), _FACTS, str(self.json), advice="start in another folder")
        check_version(found, self.json)
        return found

    def note(self, **facts: Any) -> dict[str, Any]:
        """Merge facts into run.json (dictionaries one level deep) and write it whole."""
        content = self.read()
        for name, value in facts.items():
            before = content.get(name)
            content[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        write_json(self.json, content)
        return content

    def begin(
        self,
        shape: ModelShape,
        source: str,
        settings: dict[str, Any],
        machine: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool,
    ) -> None:
        """Make the folder a run of a model, or go on with the run that it holds.

        Args:
            shape: of the model.
            source: what `load_model` opens it by, whichever the working folder is then.
            settings: of the run; an earlier one's must be the same, where it had them.
            machine: of `headscope.provenance.machine`.
            resume: go on with the run that it holds.
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
            self.check_model(shape)
            if not resume:
                raise DataError(
                    f"{self.path}: holds a run of {found['model']['name']} already; continue it with `resume`, start anew with "
                    "`overwrite`, or choose another folder for `out`."
                )
            if different := _difference(found["settings"], settings):
                name, before, value = different
                raise DataError(
                    f"{self.path}: was begun with {name} {_brief(before)}, now it is {_brief(value)}; use the same, or "
                    "another folder for `out`."
                )
            self.note(settings=settings)
            return
        if not cleared and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise DataError(f"{self.path}: exists and is no run folder; choose another one for `out`.")
        write_json(
            self.json,
            {
                "headscope": version_of("headscope"),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "model": {**shape.to_dict(), "source": source},
                "settings": settings,
                "versions": versions(),
                "machine": machine,
                "steps": {},
            },
        )

    def check_model(self, shape: ModelShape) -> None:
        """Refuse a run folder of another model.

        Raises:
            DataError: the weights differ from those the run was begun with.
        """
        found = self.read()["model"]
        if found["weights"] != shape.weights:
            raise DataError(
                f"{self.path}: is a run of {found['name']} (weights {found['weights'][:12]}), not of {shape.name} (weights "
                f"{shape.weights[:12]}); choose another folder for `out`."
            )

    def done(self, step: str) -> bool:
        """Whether a step has been finished."""
        return step in self.read()["steps"]


def check_version(run: dict[str, Any], file: Path) -> None:
    """Refuse a run of a version whose settings and names of files were others.

    Args:
        run: content of run.json.
        file: where it stands.

    Raises:
        DataError: see above.
    """
    settings = run.get("settings")
    if isinstance(settings, dict) and isinstance(settings.get("prompts"), list):
        version = plain(str(run.get("headscope", "0.1")))
        raise DataError(
            f"{file}: was begun by headscope {version}, whose settings this version does not read; begin a run in another "
            "folder, or use `overwrite`."
        )


def _difference(before: dict[str, Any], now: dict[str, Any], table: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that is another one now, as (name, before, now); what was None or missing was not needed so far."""
    for name, value in now.items():
        there = before.get(name)
        if isinstance(there, dict) and isinstance(value, dict):
            if found := _difference(there, value, f"{table}{name}."):
                return found
        elif there not in (None, value):
            return f"{table}{name}", there, value
    return None


def _brief(value: Any) -> str:
    return shown(value) if isinstance(value, str) else clipped(str(value))
