"""From checkpoints to the shipped folder: bf16 safetensors shards, configuration, tokenizer, model card."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

from headscope.errors import DataError
from headscope.reference.card import write_card
from headscope.reference.pictures import Stickers, prompts_by_seed
from headscope.reference.presets import Preset
from headscope.reference.tokenizer import special_ids
from headscope.reference.transformer import fresh_model, trainable
from headscope.storage import write_text

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
) -> Path:
    """Write a folder that `JanusForConditionalGeneration.from_pretrained` and headscope both read.

    Args:
        training: holds `vq.safetensors` and `transformer.safetensors`.
        stickers: what it was trained on, from which the prompts of its demo are drawn.
        out: the folder to fill; shards stay under 10 MB.
        machine: what it was trained on, for the model card.
    Raises:
        DataError: nothing was trained yet.
    """
    checkpoint = training / "transformer.safetensors"
    if not checkpoint.exists():
        raise DataError(f"{checkpoint}: no such checkpoint; run `python -m headscope.reference train` first.")
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
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("model*.safetensors*"):
        old.unlink()
    module: nn.Module = model
    module.to(torch.bfloat16)
    model.save_pretrained(out, max_shard_size="10MB")
    tokenizer.save_pretrained(out)
    lines = ["# Drawn by seed from the concepts and styles that the model was trained on."]
    write_text(out / "prompts.txt", "\n".join([*lines, *prompts_by_seed(stickers, PROMPTS, seed)]) + "\n")
    write_card(
        preset, stickers, training, out, parameters=parameters, vocabulary=len(tokenizer), where=_where(training, machine)
    )
    return out


def _where(training: Path, machine: str) -> str:
    """Where and how long, from the logs; their clocks start again whenever a stopped run goes on."""
    hours = 0.0
    for name in ("vq.csv", "transformer.csv"):
        seconds = pd.read_csv(training / name)["seconds"]
        ends = seconds[(seconds.shift(-1) < seconds) | (seconds.index == seconds.index[-1])]
        hours += float(ends.sum()) / 3600
    return f"Trained on {machine} in {hours:.1f} hours, VQ model included, with other work on the same machine."
