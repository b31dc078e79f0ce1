"""What a search found, and the files that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from headscope.policy import Policy
from headscope.storage import write_json, write_parquet
from headscope.tuning.study.phase import Candidate


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        policy: the best of everything measured, provenance and calibration results filled in.
        kl: its loss on the calibration images, nats a token.
        label: where it came from: "preset h2o", "solver stride 16 decay 1", "table trial" ...
        incumbents: label -> kl of what was measured before the first trial.
        trials: one row a trial, in the order of measuring within each phase.
        importances: phase -> number -> share of the loss's variance.
        presets: the best of each preset at the same bytes, by name.
        solver: the best of the solver's answers.
        stopped: why the search ended before its last trial, or "".
        dropped_strides: strides asked for whose buffer does not fit the limit.
        seconds: that the search took.
        settings: what else search.json says, JSON values.
    """

    policy: Policy
    kl: float
    label: str
    incumbents: dict[str, float]
    trials: pd.DataFrame
    importances: dict[str, dict[str, float]]
    presets: dict[str, Policy] = field(default_factory=dict)
    solver: Candidate | None = None
    stopped: str = ""
    dropped_strides: list[int] = field(default_factory=list)
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The content of search.json."""
        states = self.trials["state"].value_counts().to_dict()
        return {
            "best": {"label": self.label, "kl": self.kl, "fingerprint": self.policy.fingerprint()},
            "incumbents": self.incumbents,
            "importances": self.importances,
            "trials": {str(name): int(count) for name, count in states.items()},
            "repeated": int(self.trials["repeated"].sum()),
            "stopped": self.stopped,
            "dropped_strides": self.dropped_strides,
            "seconds": self.seconds,
            **self.settings,
        }

    def save(self, folder: str | Path) -> None:
        """Write trials.parquet and search.json.

        Args:
            folder: where to; files of those names are replaced.
        """
        folder = Path(folder)
        write_parquet(self.trials, folder / "trials.parquet")
        write_json(folder / "search.json", self.summary())
