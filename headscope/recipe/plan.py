"""What a run is told: where, on what, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TRIAL = 10  # steps that warm up, and then as many that are timed


@dataclass(frozen=True)
class Plan:
    """What a run is told: everything else stands in the preset.

    Attributes:
        folder: for weights, logs and checkpoints.
        seed: of weights and images.
        device: as torch names it.
        images: in place of the preset's number.
        warm_start: folder with the weights to go on from.
        minutes_between_checkpoints: at the least.
        seconds: that a stage may take, on one process; the number of its steps follows from the measured speed.
        loaders: worker processes that compose the images and hand them over as bytes; None: training composes them itself.
        compiled: try a compiled decoder in the first steps, and keep it if it is faster.
        lines: file to which every row of the logs is appended as a line of JSON.
        trial: steps that warm up, and then as many that are timed, where the speed is measured.
    """

    folder: Path
    seed: int = 0
    device: str = "cpu"
    images: int | None = None
    warm_start: Path | None = None
    minutes_between_checkpoints: float = 4.0
    seconds: float | None = None
    loaders: int | None = None
    compiled: bool = False
    lines: Path | None = None
    trial: int = TRIAL

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU of CUDA."""
        return self.device.startswith("cuda")
