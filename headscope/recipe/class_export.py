"""From the checkpoint of `stickers-classes` to its folder: LlamaGen's own keys in bf16 safetensors, side files, model card."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from headscope.errors import DataError
from headscope.models import vq as vq_names
from headscope.models.llamagen import LlamaGenNetwork, stored_name
from headscope.models.llamagen_classes import CLASS_FILE
from headscope.models.llamagen_files import SIDE_FILE
from headscope.recipe.card import loss_table, losses_of, write_curve
from headscope.recipe.class_transformer import DECAY, NAMES, fresh_network, sizes_of
from headscope.recipe.export import GUIDANCE, TEMPERATURE, where_trained
from headscope.recipe.images import Stickers
from headscope.recipe.presets import BACKGROUNDS, Preset
from headscope.recipe.vq import load_vq
from headscope.recipe.warm_start import RECIPE
from headscope.storage import write_json, write_text, write_whole

_CARD = """---
license: apache-2.0
pipeline_tag: unconditional-image-generation
---
# {name}

A model that is bundled with headscope: a class-conditional LlamaGen, small, with LlamaGen's own names of tensors. It draws
one sticker of {pixels} x {pixels} pixels of one of {classes} classes (`classes.txt`), in a style of its own choice, as
{grid} x {grid} image tokens in raster order, with classifier-free guidance. It exists so that the LlamaGen family runs offline
on real attention of a really trained model; it is no art.

- `model.safetensors`: the transformer, in bfloat16; the last row of the class embedding is no class.
- `vq.safetensors`: the decoder and the codebook of the VQ model of `stickers`, by LlamaGen's names.
- `llamagen.json`: heads and grid, which shapes do not tell, and guidance and temperature.

## Data

{images} drawings of {classes} everyday concepts in up to {styles} styles, from the icon packages named in `NOTICE` with
their licences (MIT, Apache-2.0, CC-BY-4.0; this model is made from them, and their authors are credited there). {held_out}
of these (concept, style) pairs were kept away from training. No image came twice the same: place, scale, mirror, tilt and one
of {backgrounds} background colours were drawn anew each time.

## Recipe

`python -m headscope.recipe classes --data stickers96.parquet`, with `--minutes {minutes:g}`; seed {seed}.

- VQ model: {codes} codes of 4 x 4 pixels, taken over from `stickers`.
- Transformer: {layers} layers x {heads} heads x {head_dim}, {parameters:.1f} M parameters; {seen:,} images, {batch} a step,
  classes dropped one time in ten; Muon for matrices, Adam for the rest; constant rate, then a decay to zero over the last
  {decay:.0%} of the steps. Products in bfloat16 where the CPU has units for it.
  {where}

## Loss

Nats a token. *Unseen pairs*: concepts in a style that training never saw. *Unseen views*: known drawings, placed anew.

![loss](loss.svg)

{table}

## What it can't do

- One sticker of these classes, in a style and on a background that it chooses; no words, no scenes.
- {pixels} x {pixels} pixels; fine lines and small faces are lost in the VQ model.
- Not every image shows its class: an annotator could name .60 of the images of the model that ships;
  `reports/stickers/classes/` has them by seed, and the labels.
- It says nothing about how good a policy's images would be in a large model: tune a policy on the model it is for.
"""


def export_classes(
    preset: Preset, stickers: Stickers, training: Path, out: Path, minutes: float, machine: str, seed: int = 0
) -> Path:
    """Write a folder that headscope reads as a LlamaGen.

    Args:
        preset: sizes.
        stickers: what it was trained on.
        training: holds `vq.safetensors`, `transformer.safetensors` and `transformer.csv`.
        out: the folder to fill.
        minutes: that it was trained for, for the model card.
        machine: what it was trained on, for the model card.
        seed: that it was trained with, for the model card.

    Raises:
        DataError: nothing was trained yet.
    """
    checkpoint = training / "transformer.safetensors"
    if not checkpoint.exists():
        raise DataError(f"{checkpoint}: no such checkpoint; run `python -m headscope.recipe classes` first.")
    sizes, vq = sizes_of(preset, len(NAMES)), load_vq(preset, training)
    network = fresh_network(sizes, vq, 0)
    network.load_state_dict({n: v for n, v in load_file(checkpoint).items() if not n.startswith("optimiser.")})
    out.mkdir(parents=True, exist_ok=True)
    _write(transformer_tensors(network, sizes.head_dim), out / "model.safetensors")
    named = {vq_names.stored_name(name): value for name, value in vq.state_dict().items()}
    _write({name: value for name, value in named.items() if not name.startswith(vq_names.UNUSED)}, out / "vq.safetensors")
    settings = {"heads": sizes.heads, "grid": sizes.side, "guidance": GUIDANCE, "temperature": TEMPERATURE}
    write_json(out / SIDE_FILE, settings)
    write_text(out / CLASS_FILE, "\n".join(NAMES) + "\n")
    losses = losses_of(training)
    seen = int(losses["images"].iloc[-1])
    write_json(out / RECIPE, [{"preset": preset.name, "images": seen}])
    write_curve(losses, out / "loss.svg")
    text = _CARD.format(
        name=out.name,
        pixels=preset.pixels,
        grid=preset.grid,
        classes=len(NAMES),
        images=len(stickers.concepts),
        styles=len(set(stickers.styles)),
        held_out=int(stickers.held_out.sum()),
        backgrounds=len(BACKGROUNDS),
        minutes=minutes,
        seed=seed,
        codes=preset.codes,
        layers=preset.layers,
        heads=preset.heads,
        head_dim=sizes.head_dim,
        parameters=sum(p.numel() for p in network.parameters()) / 1e6,
        seen=seen,
        batch=preset.batch,
        decay=1 - DECAY,
        where=where_trained(training, machine, alone=False),
        table=loss_table(losses),
    )
    write_text(out / "README.md", text)
    return out


def transformer_tensors(network: LlamaGenNetwork, head_dim: int) -> dict[str, torch.Tensor]:
    """The transformer's tensors by LlamaGen's names: queries, keys and values in one matrix, neighbours turning together."""
    found: dict[str, torch.Tensor] = {}
    for ours, tensor in network.state_dict().items():
        name, _, part = stored_name(ours).partition("[")
        rows = _pairs(tensor, head_dim) if part in ("q]", "k]") else tensor
        found[name] = torch.cat([found[name], rows]) if name in found else rows
    return found


def _pairs(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows [H * D, C] of heads with the first of every pair before the second of every pair -> in pairs."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda target: save_file(rounded, target, {"format": "pt"}))
