"""The whole training of one bundled model within minutes, for a GPU: VQ model, transformer, model folder, sheet, score."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.models import bundled_folder, load_model, resolve_device
from headscope.recipe.csv_log import append_line
from headscope.recipe.export import export, prompts_of
from headscope.recipe.images import Stickers, load_stickers
from headscope.recipe.plan import TRIAL, Plan
from headscope.recipe.presets import Preset, for_gpu, tiny
from headscope.recipe.scoring import Comparison, grade, prompts_for, write_sheet
from headscope.recipe.tokenizer import tokenizer_of
from headscope.recipe.transformer import train_transformer
from headscope.recipe.vq import train_vq
from headscope.stickereval import StickerEval
from headscope.storage import read_json, write_csv, write_json, write_text

VQ_SHARE, END_SHARE = 0.16, 0.16  # of the minutes: for the VQ model, and for the folder, the sheet and the scores
SHEET = 48  # samples
VIEWS = 2  # graded images a prompt
TOGETHER = 100  # images generated at once on a GPU


@dataclass(frozen=True)
class FullTraining:
    """What is asked for.

    Attributes:
        model: name of a bundled model.
        data: image file.
        out: folder for everything; a stopped run goes on there.
        device: as torch names it, or auto.
        minutes: for all of it.
        seed: of weights and images.
        workers: processes that compose images; None for one less than there are cores.
        preset: other sizes than the bundled model's.
        batch: images a step of the transformer; None for the preset's on a GPU.
        compiled: try whether a compiled decoder is faster, on a GPU.
        dry: only go through everything, with the tiniest of everything.
    """

    model: str
    data: Path
    out: Path
    device: str = "auto"
    minutes: float = 9.0
    seed: int = 0
    workers: int | None = None
    preset: str | None = None
    batch: int | None = None
    compiled: bool = True
    dry: bool = False

    @property
    def size(self) -> Preset:
        """What is trained."""
        size = for_gpu(self.model, self.preset, self.batch)
        return tiny(size) if self.dry else size

    @property
    def seconds(self) -> float:
        """For all of it."""
        return 3.0 if self.dry else 60 * self.minutes

    @property
    def folder(self) -> Path:
        """The model's."""
        return self.out / self.model

    @property
    def training(self) -> Path:
        """Logs, checkpoints and weights."""
        return self.out / "training"

    @property
    def loaders(self) -> int:
        """Processes that compose images: one core is left to training."""
        return self.workers if self.workers is not None else 2 if self.dry else max(1, (os.cpu_count() or 2) - 1)

    def plan(self, device: str, seconds: float) -> Plan:
        """Of one stage."""
        return Plan(
            self.training,
            self.seed,
            device,
            minutes_between_checkpoints=0.0 if self.dry else 1.0,
            seconds=seconds,
            loaders=self.loaders,
            compiled=self.compiled and device.startswith("cuda"),
            lines=self.out / "train.jsonl",
            trial=2 if self.dry else TRIAL,
        )


def train_in_full(asked: FullTraining, say: Callable[[str], None] = print) -> str:
    """Train, write the model, a sheet and its score; returns the sentence that says how good it is.

    Raises:
        DataError: an unknown model or preset, an unreadable image file, or a folder that other settings began.
    """
    began, size, device = time.monotonic(), asked.size, resolve_device(asked.device)
    stickers = load_stickers(asked.data, size, asked.seed)
    tokenizer = tokenizer_of(asked.data)
    _keep_settings(asked)
    _prepare(device)
    _train(asked, size, stickers, tokenizer, device, began, say)
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "a CPU"
    recipe = f"`python -m headscope.recipe full {asked.model} --data stickers96.parquet --minutes {asked.minutes:g}`"
    recipe += f",\n{size.batch} images a step; seed {asked.seed}."
    export(size, tokenizer, stickers, asked.training, asked.folder, where, asked.seed, recipe)
    say(f"{time.monotonic() - began:.0f} s: {asked.folder} holds the model")
    sentence = f"{asked.model}, trained on {where} in {asked.seconds / 60:g} minutes: {_judge(asked, stickers, device, say)}"
    write_text(asked.out / "result.txt", sentence + "\n")
    return sentence


def _train(
    asked: FullTraining,
    size: Preset,
    stickers: Stickers,
    tokenizer: PreTrainedTokenizerFast,
    device: str,
    began: float,
    say: Callable[[str], None],
) -> None:
    """Both stages; the transformer has the time that the VQ model leaves."""
    for_vq = VQ_SHARE * asked.seconds
    used = for_vq if any(asked.training.glob("vq*.safetensors")) else 0.0  # by a run that was stopped
    if not (asked.training / "vq.safetensors").exists():
        say(f"{time.monotonic() - began:.0f} s: the VQ model, for {for_vq:.0f} s")
        train_vq(0, size, stickers, asked.plan(device, for_vq))
    left = max(1.0, asked.seconds * (1 - END_SHARE) - max(used, time.monotonic() - began))
    say(f"{time.monotonic() - began:.0f} s: the transformer, for {left:.0f} s, less what earlier runs here had")
    train_transformer(0, size, stickers, tokenizer, asked.plan(device, left))


def _judge(asked: FullTraining, stickers: Stickers, device: str, say: Callable[[str], None]) -> str:
    """Write the sheet and the scores; returns the sentence that says both."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what training held
    together = TOGETHER if device.startswith("cuda") else None
    model = load_model(str(asked.folder), device)
    prompts = prompts_of(asked.size, stickers, 4 if asked.dry else SHEET, 1)
    write_sheet(model, prompts, asked.out / "sheet.png", batch_size=together)
    say(f"{asked.out / 'sheet.png'} shows samples")
    wanted, views, grader = prompts_for(asked.size.scenes > 0), VIEWS, StickerEval(device=device)
    if asked.dry:
        wanted, views = wanted[:: len(wanted) // 2], 1
    new = grade(model, wanted, grader, views, together)
    write_csv(new, asked.out / "graded.csv")
    shipped = grade(load_model(str(bundled_folder(asked.model)), device), wanted, grader, views, together)
    compared = Comparison.of(new, shipped)
    write_csv(compared.table, asked.out / "score.csv", float_format="%.4f")
    for row in compared.table.to_dict("records"):
        append_line(asked.out / "train.jsonl", {"stage": "score", **row})
    return compared.sentence()


def _keep_settings(asked: FullTraining) -> None:
    """What a run that goes on must share with the one that began."""
    path = asked.out / "settings.json"
    settings = {"model": asked.model, "preset": asked.size.name, "batch": asked.size.batch, "seed": asked.seed}
    if path.exists():
        before = read_json(path)
        for name, value in settings.items():
            if before.get(name) != value:
                raise DataError(f"{asked.out}: was begun with {name} {before.get(name)}, not {value}; choose another folder.")
    asked.training.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _prepare(device: str) -> None:
    """Let a GPU choose its convolutions, and multiply float32 in TF32 where nothing is said: the VQ model, the optimiser."""
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
