"""The model card: what the bundled model learned from, how, how well, and what it can't do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from headscope.recipe.images import Stickers
from headscope.recipe.presets import BACKGROUNDS, Preset
from headscope.recipe.scenes import CLASSES, STYLE_SAID
from headscope.recipe.stage import DECAY_FROM, DECAY_FROM_LATER
from headscope.storage import write_text, write_whole

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-to-image
---
# {name}

A model that is bundled with headscope: a `JanusForConditionalGeneration` of transformers with a small configuration. It
draws {draws},
as {grid} x {grid} image tokens in raster order, with classifier-free guidance. It exists so that every step of headscope runs
offline on real attention of a really trained model; it is no art.

## Data

{images} drawings of {concepts} everyday concepts in up to {styles} styles, from the icon packages named in `NOTICE` with
their licences (MIT, Apache-2.0, CC-BY-4.0; this model is made from them, and their authors are credited there). {held_out}
of these (concept, style) pairs were kept away from training. No image came twice the same: place, scale, mirror, tilt and one
of {backgrounds} background colours were drawn anew each time.{scenes}

## Recipe

{recipe}

- Tokenizer: one token a word, {vocabulary} words.
- VQ model: {codes} codes of 4 x 4 pixels, {vq_images}, {psnr:.1f} dB on drawings it never saw.
- Transformer: {layers} layers x {heads} heads x {head_dim}, {parameters:.1f} M parameters in all; {seen:,} images, prompts
  dropped one time in ten; Muon for matrices, Adam for the rest; constant rate, then a decay to zero over the last
  {decay:.0%} of {each}.
  {where}

## Loss

Nats a token. *Unseen pairs*: concepts in a style that training never saw. *Unseen views*: known drawings, placed
anew.{scenes_loss}

![loss](loss.svg)

{table}

## What it can't do

- {cannot}; words that are not in its vocabulary are `<unk>`.
- {pixels} x {pixels} pixels; fine lines and small faces are lost in the VQ model.
- Rare concepts and styles come out as a shape in the right colours. Look at `reports/stickers/` before you rely on one.
- It says nothing about how good a policy's images would be in a large model: tune a policy on the model it is for.
"""

_LOSSES = {"loss": "training", "unseen_views": "unseen views", "unseen_pairs": "unseen pairs", "scenes": "scenes"}


def write_card(
    preset: Preset,
    stickers: Stickers,
    training: Path,
    out: Path,
    *,
    before: list[dict[str, Any]],
    parameters: int,
    vocabulary: int,
    psnr: float,
    where: str,
    recipe: str = "",
) -> Path:
    """Write README.md and loss.svg into `out`, from the logs in `training`.

    Args:
        before: stages that the weights had behind them, see `warm.stages_of`.
        psnr: decibels of the VQ model's images of drawings that training never saw.
        where: a sentence on machine and time.
        recipe: what made it; the `train` command if it is empty.
    """
    losses = losses_of(training)
    write_curve(losses, out / "loss.svg")
    text = _CARD.format(
        pixels=preset.pixels,
        grid=preset.grid,
        images=len(stickers.concepts),
        concepts=len(set(stickers.concepts)),
        styles=len(set(stickers.styles)),
        held_out=int(stickers.held_out.sum()),
        backgrounds=len(BACKGROUNDS),
        vocabulary=vocabulary,
        codes=preset.codes,
        vq_images=_vq_images(training),
        psnr=psnr,
        name=out.name,
        **_words(preset),
        each="the steps" if recipe else "each N",
        recipe=recipe or _train_command(preset, before, losses),
        layers=preset.layers,
        heads=preset.heads,
        head_dim=preset.hidden // preset.heads,
        parameters=parameters / 1e6,
        seen=int(losses["images"].iloc[-1]),
        decay=1 - (DECAY_FROM_LATER if before else DECAY_FROM),
        where=where,
        table=loss_table(losses),
        scenes_loss=" *Scenes*: new scenes of training's kind." if preset.scenes else "",
    )
    return write_text(out / "README.md", text)


def losses_of(training: Path) -> pd.DataFrame:
    """The log of the transformer, a row a step; a run that went on from a checkpoint wrote some of them twice."""
    return pd.read_csv(training / "transformer.csv").drop_duplicates("step", keep="last").sort_values("step")


def _vq_images(training: Path) -> str:
    if not (training / "vq.csv").exists():
        return "taken over from the model that this run went on from"
    return f"{int(pd.read_csv(training / 'vq.csv')['images'].iloc[-1]):,} images"


def _words(preset: Preset) -> dict[str, str]:
    """What the card says of a model of single stickers, or of one that knows scenes too."""
    side = f"{preset.pixels} x {preset.pixels} pixels"
    if not preset.scenes:
        return {
            "draws": f"one sticker of {side} from a prompt such as `red apple, noto style, blue background`",
            "scenes": "",
            "cannot": "One sticker, no scenes, no counts, no positions",
        }
    return {
        "draws": f"a scene of one to four stickers, {side}, from a prompt such as `a dog to the left of a banana, noto style`",
        "scenes": (
            f"\n\n{preset.scenes:.0%} of the images were scenes composed anew from {len(CLASSES)} everyday concepts: one of "
            "them, two, two to four\nof the same, or two with a relation (left, right, above, below). One pair of concepts in "
            "five, and one number for each\nconcept, never occurred; `headscope/recipe/scenes.py` says which. Where all "
            f"stickers share a style, {STYLE_SAID:.0%} of the prompts\nsay it. The pairs of concept and style above were kept "
            "away from single stickers only: scenes do show those of their\nconcepts."
        ),
        "cannot": f"Scenes know {len(CLASSES)} concepts; numbers go to four; two concepts of one scene share a style",
    }


def _train_command(preset: Preset, before: list[dict[str, Any]], losses: pd.DataFrame) -> str:
    command = f"`python -m headscope.recipe train --images stickers96.parquet --preset {preset.name} --count N`"
    return f"{command}{_start(before)},\n{_stages(losses)}, and then `export`; seed 0."


def _start(before: list[dict[str, Any]]) -> str:
    """From which weights the run began."""
    if not before:
        return ""
    told = ", then ".join(f"{stage['images']:,} images of preset `{stage['preset']}`" for stage in before)
    return f", begun (`--warm-start`) from\nweights that had seen {told}"


def _stages(losses: pd.DataFrame, every: int = 50) -> str:
    """With which counts the run was made: a run's last step is logged whatever its number, others every 50 steps.

    A run that is called again with a larger count goes on from the checkpoint of the one before.
    """
    ends = losses[(losses["step"] % every != 0) | (losses["step"] == losses["step"].max())]["images"]
    return "with N = " + ", then on from there with N = ".join(f"{images:,}" for images in ends)


def loss_table(losses: pd.DataFrame, rows: int = 10) -> str:
    """A dozen lines of the log, evenly spread, the last one included."""
    picks = sorted({round(i * (len(losses) - 1) / (rows - 1)) for i in range(rows)})
    names = [name for name in _LOSSES if name in losses]
    lines = [f"| images | {' | '.join(_LOSSES[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for _, row in losses.iloc[picks].iterrows():
        lines.append(f"| {int(row['images']):,} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
    return "\n".join(lines)


def write_curve(losses: pd.DataFrame, path: Path) -> None:
    """Draw the losses over the images seen."""
    with mpl.rc_context({"svg.hashsalt": "headscope", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for name, label in ((name, label) for name, label in _LOSSES.items() if name in losses):
            axes.plot(losses["images"] / 1000, losses[name], label=label, linewidth=1.6)
        axes.set(xlabel="images seen, thousands", ylabel="nats a token")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        write_whole(path, lambda target: figure.savefig(target, format="svg", metadata={"Date": None}))
