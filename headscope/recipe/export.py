"""From checkpoints to the shipped folder: bf16 safetensors shards, configuration, tokenizer, model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.janus.modeling_janus import JanusVQVAE

from headscope.errors import DataError
from headscope.recipe.card import write_card
from headscope.recipe.images import Stickers, prompts_by_seed, sample_batch
from headscope.recipe.presets import Preset
from headscope.recipe.scenes import KINDS, SceneBook, describe
from headscope.recipe.tokenizer import special_ids
from headscope.recipe.transformer import fresh_model, trainable
from headscope.recipe.vq import reconstruct
from headscope.recipe.warm_start import RECIPE, stages_of
from headscope.storage import write_json, write_text

# Chosen by eye among (3, 1), (3, .8), (5, .9) and (2, .7), on prompts of another seed than the committed sheet.
GUIDANCE, TEMPERATURE = 2.0, 0.7
PROMPTS = 64


def export(
    preset: Preset,
    tokenizer: PreTrainedTokenizerFast,
    stickers: Stickers,
    training: Path,
    out: Path,
    machine: str,
    seed: int = 0,
    recipe: str = "",
) -> Path:
    """Write a folder that `JanusForConditionalGeneration.from_pretrained` and headscope both read.

    Args:
        training: holds `vq.safetensors` and `transformer.safetensors`.
        stickers: what it was trained on, from which the prompts of its demo are sampled.
        out: the folder to fill; shards stay under 10 MB.
        machine: what it was trained on, for the model card.
        seed: of the demo's prompts.
        recipe: what made it, for the model card, on a machine of its own; the `train` command if it is empty.
    Raises:
        DataError: nothing was trained yet.
    """
    checkpoint = training / "transformer.safetensors"
    if not checkpoint.exists():
        raise DataError(f"{checkpoint}: no such checkpoint; run `python -m headscope.recipe train` first.")
    model = fresh_model(preset, tokenizer, training, 0, "cpu")
    state = {n: v for n, v in load_file(checkpoint).items() if not n.startswith("optimiser.")}
    trainable(model).load_state_dict(state)
    ids = special_ids(tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        guidance_scale=GUIDANCE,
        do_sample=True,
        temperature=TEMPERATURE,
        generation_kwargs={"boi_token_id": ids["boi"]},
    )
    parameters = sum(p.numel() for p in model.parameters())
    psnr = held_out_psnr(model.model.vqmodel, stickers)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("model*.safetensors*"):
        old.unlink()
    module: nn.Module = model
    module.to(torch.bfloat16)
    model.save_pretrained(out, max_shard_size="10MB")
    tokenizer.save_pretrained(out)
    lines = ["# Drawn by seed from the concepts and styles that the model was trained on."]
    write_text(out / "prompts.txt", "\n".join([*lines, *prompts_of(preset, stickers, PROMPTS, seed)]) + "\n")
    before = stages_of(training)
    seen = int(pd.read_csv(training / "transformer.csv")["images"].iloc[-1])
    write_json(out / RECIPE, [*before, {"preset": preset.name, "images": seen}])
    write_card(
        preset,
        stickers,
        training,
        out,
        before=before,
        parameters=parameters,
        vocabulary=len(tokenizer),
        psnr=psnr,
        where=where_trained(training, machine, alone=bool(recipe)),
        recipe=recipe,
    )
    return out


@torch.no_grad()
def held_out_psnr(vq: JanusVQVAE, stickers: Stickers, count: int = 64) -> float:
    """Decibels of encoded and decoded images of drawings that training never saw."""
    chosen = np.resize(stickers.indices(held_out=True), count)
    pixels = sample_batch(stickers, chosen, np.random.default_rng([0, 99])).pixels
    errors = [(reconstruct(vq, part)[0].clamp(-1, 1) - part).square().mean() for part in pixels.split(8)]
    return float(-10 * torch.log10(torch.stack(errors).mean() / 4))


def prompts_of(preset: Preset, stickers: Stickers, count: int, seed: int) -> list[str]:
    """Prompts of a preset's kind, chosen by seed."""
    return (scene_prompts if preset.scenes else prompts_by_seed)(stickers, count, seed)


def scene_prompts(stickers: Stickers, count: int, seed: int) -> list[str]:
    """Different captions of training's kinds of scene, a quarter each."""
    book, rng = SceneBook(stickers), np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[describe(book.sample(KINDS[len(found) % len(KINDS)], rng), rng)] = None
    return list(found)


def where_trained(training: Path, machine: str, alone: bool) -> str:
    """Where and how long, from the logs; their clocks start again whenever a stopped run goes on."""
    hours = 0.0
    begun_anew = (training / "vq.csv").exists()
    for name in ("vq.csv", "transformer.csv") if begun_anew else ("transformer.csv",):
        seconds = pd.read_csv(training / name)["seconds"]
        ends = seconds[(seconds.shift(-1) < seconds) | (seconds.index == seconds.index[-1])]
        hours += float(ends.sum()) / 3600
    of = "VQ model included" if begun_anew else "beside the hours of the model before"
    took = f"{hours:.1f} hours" if hours >= 0.95 else f"{60 * hours:.0f} minutes"
    return f"Trained on {machine} in {took}, {of}{'' if alone else ', with other work on the same machine'}."
