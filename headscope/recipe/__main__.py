"""The recipe's command line: `python -m headscope.recipe train --images FILE`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headscope.errors import DataError, HeadscopeError
from headscope.models import load_model
from headscope.recipe import agreement, detector, detector_evaluation, parallel, stickereval_prompts
from headscope.recipe.class_export import export_classes
from headscope.recipe.class_transformer import SIZE, class_stickers, train_classes
from headscope.recipe.detector_data import DetectorScenes, Pool
from headscope.recipe.export import export as export_folder, prompts_of
from headscope.recipe.full import FullTraining, train_in_full
from headscope.recipe.icons import build_images
from headscope.recipe.image_model import load_image_model
from headscope.recipe.images import load_stickers
from headscope.recipe.plan import Plan
from headscope.recipe.presets import BUNDLED, PRESETS, Preset
from headscope.recipe.pseudo_labels import generated_pool, named_things
from headscope.recipe.scoring import write_sheet
from headscope.recipe.tokenizer import tokenizer_of
from headscope.recipe.transformer import train_transformer
from headscope.recipe.vq import train_vq
from headscope.recipe.warm_start import take_over_vq
from headscope.stickereval.detector import WEIGHTS, StickerDetector
from headscope.stickereval.grader import StickerEval
from headscope.stickereval.prompts import read_grading_prompts
from headscope.storage import write_csv, write_whole

SHIPPED = Path(__file__).parents[1] / "bundled" / "stickers"
SHIPPED_CLASSES = SHIPPED.with_name("stickers-classes")
SCENES = "stickers-scenes"
STICKERS = Path("reports/stickers")

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Make the bundled models again.")
Images = Annotated[Path, typer.Option(help="Parquet file of images (see the `images` command).")]
Folder = Annotated[Path, typer.Option(help="Folder for weights, logs and checkpoints; a stopped run goes on there.")]
Size = Annotated[str, typer.Option("--preset", help="quick: hours on two cores; full: minutes on a GPU.")]


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise DataError(f"--preset {name}: unknown; known presets are {', '.join(PRESETS)}.")
    return PRESETS[name]


@app.command("images")
def images_of_icons(
    packages: Annotated[Path, typer.Option(help="Folder with the icon packages, packed by npm or unpacked.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")] = Path("stickers96.parquet"),
    size: Annotated[int, typer.Option(min=1, help="Pixels of a side.")] = 96,
) -> None:
    """Render the images from icon packages. Example: python -m headscope.recipe images --packages icons"""
    print(build_images(packages, out, size))


@app.command()
def train(
    images: Images,
    out: Folder = Path("training"),
    preset: Size = "quick",
    workers: Annotated[int, typer.Option(help="Processes of one thread each (CPU); 1 on a GPU.")] = 2,
    seed: int = 0,
    device: str = "cpu",
    count: Annotated[int | None, typer.Option("--count", help="Train on this many images instead.")] = None,
    warm_start: Annotated[Path | None, typer.Option(help="Model or training folder to go on from, VQ model included.")] = None,
) -> None:
    """Train the VQ model, then the transformer. Example: python -m headscope.recipe train --images stickers96.parquet"""
    size = _preset(preset)
    stickers = load_stickers(images, size, seed)
    out.mkdir(parents=True, exist_ok=True)
    if warm_start is not None and not (out / "vq.safetensors").exists():
        take_over_vq(warm_start, out)
    if not (out / "vq.safetensors").exists():
        parallel.run(train_vq, workers, size, stickers, Plan(out, seed, device))
    plan = Plan(out, seed, device, count, warm_start)
    parallel.run(train_transformer, workers, size, stickers, tokenizer_of(images), plan)


@app.command()
def full(
    model: Annotated[str, typer.Argument(help=f"What to train: {' or '.join(BUNDLED)}.")],
    data: Annotated[Path, typer.Option(help="Parquet file of images (see the `images` command).")],
    out: Annotated[Path, typer.Option(help="Folder for everything; the same command goes on there after a stop.")],
    device: Annotated[str, typer.Option(help="As torch names it; auto: a GPU if there is one.")] = "auto",
    minutes: Annotated[float, typer.Option(min=0.05, help="For all of it.")] = 9.0,
    seed: int = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that compose images (default: cores less one).")] = None,
    preset: Annotated[str | None, typer.Option(help="Other sizes than the bundled model's; full: a larger one.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images a step of the transformer.")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Try whether compiling pays, on a GPU.")] = True,
    dry: Annotated[bool, typer.Option("--dry", help="Go through everything in seconds, with the tiniest of all.")] = False,
) -> None:
    """Train a bundled model within minutes. Example: python -m headscope.recipe full stickers-scenes --data F --out O"""
    say = partial(print, flush=True)
    say(train_in_full(FullTraining(model, data, out, device, minutes, seed, workers, preset, batch, compiled, dry), say))


@app.command("classes")
def train_on_classes(
    data: Annotated[Path, typer.Option(help="Parquet file of images (see the `images` command).")],
    out: Folder = Path("training/classes"),
    model: Annotated[Path, typer.Option(help="The folder to fill.")] = SHIPPED_CLASSES,
    minutes: Annotated[float, typer.Option(min=0.05, help="For the training, on one thread of a CPU.")] = 55.0,
    seed: int = 0,
    machine: Annotated[str, typer.Option(help="What it is trained on, for the model card.")] = "one CPU core without a GPU",
) -> None:
    """Train `stickers-classes` and write its folder. Example: python -m headscope.recipe classes --data stickers96.parquet"""
    stickers = class_stickers(data, SIZE, seed)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "vq.safetensors").exists():
        take_over_vq(SHIPPED, out)
    train_classes(SIZE, stickers, Plan(out, seed, seconds=60 * minutes))
    print(export_classes(SIZE, stickers, out, model, minutes, machine, seed))


@app.command()
def export(
    images: Images,
    training: Folder = Path("training"),
    out: Annotated[Path, typer.Option(help="The folder to fill.")] = SHIPPED,
    preset: Size = "quick",
    machine: Annotated[str, typer.Option(help="What it was trained on, for the model card.")] = "two CPU cores without a GPU",
) -> None:
    """Write the trained model as a folder. Example: python -m headscope.recipe export --images stickers96.parquet"""
    size = _preset(preset)
    print(export_folder(size, tokenizer_of(images), load_stickers(images, size), training, out, machine))


@app.command()
def sheet(
    images: Images,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = STICKERS / "sheet.png",
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 48,
    seed: int = 1,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (default: the model's).")] = None,
    preset: Size = "quick",
    model: Annotated[str, typer.Option(help="A model name or folder.")] = "stickers",
) -> None:
    """Generate a sheet of prompts chosen by seed. Example: python -m headscope.recipe sheet --images stickers96.parquet"""
    size = _preset(preset)
    prompts = prompts_of(size, load_stickers(images, size), count, seed)
    print(write_sheet(load_model(model), prompts, out, seed, guidance))


@app.command("detector")
def train_and_test_detector(
    images: Images,
    training: Folder = Path("training/detector"),
    count: Annotated[int, typer.Option("--count", min=0, help="Train on this many images; 0 only tests again.")] = 51_200,
    scenes: Annotated[int, typer.Option("--resampled", min=0, help="Scenes that the model resamples; 0 for none.")] = 3_200,
    generated: Annotated[int, typer.Option(min=0, help="Images the model generates and the --warm-start detector labels.")] = 0,
    warm_start: Annotated[Path | None, typer.Option(help="Detector file to go on from.")] = None,
    seed: int = 0,
    model: Annotated[str, typer.Option(help="A name or folder: its VQ model shows a third, it resamples a third.")] = SCENES,
    out: Annotated[Path, typer.Option(help="Detector file to write.")] = WEIGHTS,
    report: Annotated[Path, typer.Option(help="Table of its test to write.")] = STICKERS / "detector.csv",
    prompts: Annotated[Path | None, typer.Option(help="Also write the grading prompts anew, here.")] = None,
    sample: Annotated[Path | None, typer.Option(help="Also keep a few images of its test here, as image tokens.")] = None,
) -> None:
    """Train and test StickerEval's detector. Example: python -m headscope.recipe detector --images stickers96.parquet"""
    book = DetectorScenes(load_stickers(images, PRESETS["full"], seed))
    if prompts is not None:
        print(stickereval_prompts.write_prompts(book, prompts))
    image_model = load_image_model(model)
    if sample is not None:
        print(detector_evaluation.write_sample(book, image_model, sample))
    if count:
        pools = [Pool.fill(book, image_model, training, scenes, seed)] if scenes else []
        if generated:
            pools.append(generated_pool(book, image_model, _earlier(warm_start), training, generated, seed))
            print("{} things of the classes and {} others in what was generated".format(*named_things(pools[-1].scenes)))
        checkpoint = detector.train_detector(book, image_model, pools, training, count, seed, warm_start)
        print(detector.ship(detector.trained(checkpoint), out))
    table = detector_evaluation.evaluate_detector(StickerDetector.load(out), book, image_model, detector_evaluation.IMAGES)
    print(table.to_string(index=False))
    print(write_csv(table, report, float_format="%.4f"))


@app.command()
def real(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder to fill with PNG files.")] = Path("real"),
    seed: int = 4,
) -> None:
    """Compose what StickerEval asks for, as real images. Example: python -m headscope.recipe real --images F"""
    print(stickereval_prompts.write_real(DetectorScenes(load_stickers(images, PRESETS["full"], 0)), out, seed))


@app.command()
def ceiling(
    images: Images,
    out: Annotated[Path, typer.Option(help="Table to write.")] = STICKERS / "ceiling.csv",
    model: Annotated[str, typer.Option(help="A name or folder: its VQ model is looked through.")] = SCENES,
    views: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 8,
    seed: int = 6,
) -> None:
    """Grade real images of what StickerEval asks for. Example: python -m headscope.recipe ceiling --images F"""
    book = DetectorScenes(load_stickers(images, PRESETS["full"], 0))
    table = stickereval_prompts.ceiling(book, load_image_model(model), StickerEval(), read_grading_prompts(), views, seed)
    print(table.to_string(index=False))
    print(write_csv(table, out, float_format="%.4f"))


def _earlier(weights: Path | None) -> StickerDetector:
    if weights is None:
        raise DataError("--generated: an earlier detector labels what is generated; name its file with --warm-start.")
    return StickerDetector.load(weights)


@app.command("agreement")
def compare_with_annotator(
    labels: Annotated[Path, typer.Option(help="What the annotator names in each image.")] = STICKERS / "labels.jsonl",
    images: Annotated[Path, typer.Option(help="Those images, as image tokens.")] = STICKERS / "labelled.safetensors",
    weights: Annotated[Path, typer.Option(help="Detector file.")] = WEIGHTS,
    model: Annotated[str, typer.Option(help="The model that generated the images: a name or folder.")] = SCENES,
    generated: Annotated[Path | None, typer.Option(help="Folder to make the file of images from before.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for agreement.csv and confusion.csv.")] = STICKERS,
) -> None:
    """Compare StickerEval's verdicts with a human annotator's. Example: python -m headscope.recipe agreement"""
    image_model = load_image_model(model)
    if generated is not None:
        print(agreement.pack_labelled(generated, image_model, images))
    labelled = agreement.read_labelled(labels, images)
    shown = agreement.decode_labelled(labelled, image_model)
    sticker_detector = StickerDetector.load(weights)
    found = sticker_detector.detect(shown)
    judged = agreement.verdicts(labelled, found)
    tables = {"agreement": agreement.agreement(judged), "confusion": agreement.confusion(labelled.things, found)}
    print(tables["agreement"].to_string(index=False))
    print(f"\nWith other thresholds than {sticker_detector.threshold}, to know and not to choose by:")
    print(agreement.by_threshold(labelled, shown, sticker_detector).to_string(index=False))
    for name, table in tables.items():
        print(write_whole(out / f"{name}.csv", partial(table.to_csv, index=False, float_format="%.4f")))


if __name__ == "__main__":
    try:
        app()
    except HeadscopeError as error:
        raise SystemExit(f"error: {error}") from None
