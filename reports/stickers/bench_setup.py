"""What the scripts of this folder share: a run opened for measuring, losses on its unseen images, options, and tables.

Each script goes on after a stop: studies and sensitivity tables are kept in the folder of `--folder`, losses on unseen images
in its `unseen.json` by the policy's fingerprint.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from headscope import Progress
from headscope.errors import HeadscopeError
from headscope.facts import NUMBER, Kind, check, record
from headscope.heads import Heads
from headscope.models import ImageModel, Samples
from headscope.pipeline import open_run, unseen_images
from headscope.policy import CONTROLS, CacheSpec, Limit, Policy, dtype_name, parse_share
from headscope.storage import read_json, read_parquet, write_csv, write_json
from headscope.tuning import (
    ANCHOR,
    Losses,
    MemoizedReplay,
    PhasedStudy,
    Replay,
    SearchConfig,
    SearchResult,
    StudyStore,
    Sweep,
    Table,
    UsualAttention,
    losses_from,
    measure_free_running,
    measure_sensitivity,
    sensitivity_table,
    study_replay,
    sweep_presets,
    usual_attention,
)

SEARCHED, OPTUNA, SOLVER = "searched", "optuna", "solver"

Run = Annotated[Path, typer.Argument(help="A run folder with heads: made by `headscope trace` and `headscope heads`.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")]
Keep = Annotated[str, typer.Option(help="Shares of the plain cache: 50,30,20% or 0.5,0.3,0.2.")]
Seeds = Annotated[int, typer.Option(min=1, help="Of the study: 0, 1 and so on.")]
Trials = Annotated[int, typer.Option(min=1, help="Trials of a study.")]
TableImages = Annotated[int, typer.Option(min=1, help="Images of the sensitivity table.")]
Folder = Annotated[Path | None, typer.Option(help="Where studies are kept (default: bench/ in RUN); goes on there.")]


@dataclass(frozen=True)
class Setup:
    """What measurements of one model share.

    Attributes:
        model: that of the run.
        calibration: the images that studies see.
        unseen: the images that every figure is measured on.
        semantic_score: float32 [layers, kv_heads].
        prefix: tokens of the longest prompt.
        out: folder of all that is kept.
        source: what `load_model` takes.
    """

    model: ImageModel
    calibration: Samples
    unseen: Samples
    semantic_score: torch.Tensor
    prefix: int
    out: Path
    source: str

    @classmethod
    def open(cls, run: Path, out: Path | None) -> Setup:
        """A run folder; its unseen images are generated with the full cache if they are not there."""
        one_thread()
        opened = open_run(run, dtype="float32")  # also on a GPU, where the default is bfloat16
        files = opened.folder
        samples, scores = Samples.load(files.samples), Heads.load(files.heads).scores()
        unseen, place = unseen_images(opened), out or files.path / "bench"
        return cls(opened.model, samples, unseen, scores, opened.prefix, place, opened.config.model)

    def limit(self, share: float) -> Limit:
        """The byte limit of one image, with guidance if the calibration images have it."""
        return byte_limit(self.model, share, self.prefix, 1 if float(self.calibration.guidance) == 1.0 else 2)

    def folder(self, share: float) -> Path:
        """Where what belongs to one limit is kept: `keep-20`."""
        return self.out / f"keep-{100 * share:g}"

    @cached_property
    def usual(self) -> UsualAttention:
        """What tokens usually receive on all calibration images."""
        self.out.mkdir(parents=True, exist_ok=True)
        return usual_attention(self.model, self.calibration, self.out / "usual.safetensors", shown("what is usual"))

    def few(self, images: int, compares: bool = False) -> Replay:
        """The first so many calibration images; heads may compare with what is usual where asked."""
        usual = self.usual if compares else None
        return Replay(self.model, self.calibration.first(images), by_stream=False, usual=usual)

    def study(self, images: int | None = None, compares: bool = False) -> MemoizedReplay:
        """The first calibration images, by default all, as a study replays them; no policy is measured twice."""
        usual = self.usual if compares else None
        return MemoizedReplay(study_replay(self.model, self.calibration.first(images), usual))

    def sweep(self, share: float, replay: MemoizedReplay, bits: tuple[int, ...] = (16,)) -> Sweep:
        """Every preset at its best on the calibration images."""
        path, tell = self.folder(share) / "presets.json", shown(f"presets at {share:.0%}")
        return sweep_presets(replay, self.limit(share), self.semantic_score, bits=bits, path=path, progress=tell)

    def search(
        self, share: float, replay: MemoizedReplay, sweep: Sweep, table: pd.DataFrame | None, name: str, **options: Any
    ) -> SearchResult:
        """A search that begins with the presets (controls left out); its study is kept, and goes on, in `name`.db. With 16 bits
        alone, whole prompts and scores of attention received, unless `bits`, `prompt` or `score` are given."""
        presets = {preset: policy for preset, policy in sweep.best.items() if preset not in CONTROLS}
        store, tell = StudyStore.open(self.folder(share) / f"{name}.db"), shown(f"{name} at {share:.0%}")
        losses, config = (
            None if table is None else self.losses(table),
            SearchConfig(**{"bits": "16", "prompt": "whole", "score": "received", **options}),
        )
        finish = self.usual.complete if config.score == "by head" else lambda policy: policy
        free = None if table is None else lambda policy: self.own_images(finish(policy), len(replay))
        return PhasedStudy(replay, self.limit(share), losses, self.semantic_score, config, store, presets, tell, free).run()

    def own_images(self, policy: Policy, images: int) -> float:
        """What a policy loses on images that it makes itself, of the first calibration prompts."""
        return measure_free_running(self.model, self.calibration.first(images), policy).kl

    def sensitivity(self, images: int) -> pd.DataFrame:
        """The sensitivity table of single heads; `attrs["seconds"]` is what measuring it took, in all calls together."""
        began, path = time.monotonic(), self.out / "sensitivity.parquet"
        before = len(read_parquet(path)) if path.exists() else 0
        table = measure_sensitivity(self.few(images), path=path, anchor=ANCHOR, progress=shown("sensitivity of single heads"))
        seconds = time.monotonic() - began
        table.attrs["seconds"] = _added(path.with_suffix(".json"), seconds if len(table) > before else 0.0)
        return table

    def gradients(self, images: int, bits: tuple[int, ...], prompts: tuple[int, ...] = (1,), compares: bool = False) -> Table:
        """The sensitivity table by gradients of the first calibration images."""
        path, tell = self.out / f"sensitivity-{images}.parquet", shown("the table by gradients")
        return sensitivity_table(self.few(images, compares), "fisher", None, path, tell, bits, prompts=prompts)

    def losses(self, table: pd.DataFrame) -> Losses:
        """A sensitivity table as the solver takes it."""
        return losses_from(table, self.model.shape.layers, self.model.shape.kv_heads, self.model.shape.geometry)


class Unseen:
    """Losses on unseen images, by fingerprint of the policy, kept in a file."""

    def __init__(self, setup: Setup) -> None:
        self.path = setup.out / "unseen.json"
        self.replay = Replay(setup.model, setup.unseen, by_stream=False)
        self.known = read_losses(self.path, len(self.replay)) if self.path.exists() else {}

    def measure(self, policy: Policy) -> dict[str, Any]:
        """kl, top1, cache_bytes and by_image (a loss an image) of a policy."""
        key = policy.fingerprint()
        if key not in self.known:
            found = self.replay.measure(policy)
            self.known[key] = {"kl": found.kl, "top1": found.top1, "cache_bytes": found.cache_bytes}
            self.known[key]["by_image"] = found.kl_by_image.tolist()
            write_json(self.path, self.known)
        return self.known[key]


def read_losses(path: Path, images: int) -> dict[str, dict[str, Any]]:
    """What `Unseen` has kept: by fingerprint kl, top1, cache_bytes and by_image, of that many images.

    Raises:
        DataError: something else stands there.
    """

    def complete(kept: object) -> bool:
        return isinstance(kept, list) and len(kept) == images and all(map(NUMBER.accepts, kept))

    losses = Kind(f"a list of {images} finite numbers", complete)
    each = record({**dict.fromkeys(("kl", "top1", "cache_bytes"), NUMBER), "by_image": losses})
    known = check(read_json(path), {}, str(path), advice="name another folder")
    return check(known, dict.fromkeys(known, each), str(path), advice="name another folder")


def byte_limit(model: ImageModel, share: float, prefix: int, streams: int) -> Limit:
    """A share of the plain cache of one image, two bytes a number."""
    return Limit.of_share(share, CacheSpec(model.shape, prefix, streams=streams, dtype=dtype_name(model.dtype)))


def one_thread() -> None:
    """Of work this small, a second thread costs more than it saves; OMP_NUM_THREADS decides otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def shares(keep: str) -> list[float]:
    """`50,30,20%`, `50%,30%,20%` or `0.5,0.3,0.2` -> [.5, .3, .2]: a % at the end is for all.

    Raises:
        BudgetError: no share, above 100 %.
    """
    parts = [part.strip() for part in keep.split(",") if part.strip()]
    if parts and parts[-1].endswith("%"):
        parts = [f"{part.removesuffix('%')}%" for part in parts]
    return [parse_share(part) for part in parts]


def shown(what: str) -> Progress:
    """A progress on the error stream: one line that counts in a terminal, else one line at the end."""

    def tell(task: str, done: int, total: int, note: str = "") -> None:
        if sys.stderr.isatty() or done == total:
            print(f"\r{what}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return tell


def write_table(table: pd.DataFrame, out: Path, float_format: str = "%.6g") -> None:
    """Write a CSV file whole."""
    write_csv(table, out, float_format=float_format)


def show(table: pd.DataFrame) -> None:
    """Print a table, three digits a number."""
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def start(script: Callable[..., None]) -> None:
    """Run a script by its command line; what its user did wrong is one sentence and exit status 2."""
    try:
        typer.run(script)
    except HeadscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _added(path: Path, seconds: float) -> float:
    """The seconds that stand in `path` and these, which then stand there too."""
    total = seconds + (check(read_json(path), {"seconds": NUMBER}, str(path))["seconds"] if path.exists() else 0.0)
    if seconds:
        write_json(path, {"seconds": total})
    return total
